/**
 * From the comparer's report on real frames to the record and its outcome: what the agent does, without its
 * VMs.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Comparer, parseRules, type RuleLines } from "../../src/compare/comparer.ts";
import { evidenceOf } from "../../src/datapath/evidence.ts";
import { explain, explanationOf } from "../../src/divergence/explain.ts";
import { DivergenceRecorder } from "../../src/divergence/recorder.ts";
import { DivergenceStore } from "../../src/divergence/store.ts";
import {
  concat,
  ethernet,
  icmp,
  ip,
  SYN,
  synOptions,
  type TcpOptions,
  tcp,
  text,
  udp,
} from "../compare/frames.ts";
import { MS, memcmpOf, Records } from "../compare/harness.ts";
import { parseFlow, TIME_MS } from "./records.ts";

let directory: string;
let store: DivergenceStore;
let recorder: DivergenceRecorder;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-recorder-"));
  store = new DivergenceStore({ path: join(directory, "divergences.db") });
  recorder = new DivergenceRecorder(store, "db1");
});
afterEach(() => {
  store.close();
  rmSync(directory, { recursive: true, force: true });
});

/** A comparer over two rings, whose reports go the worker's and the primary's way to the store. */
class Pair {
  readonly ids: number[] = [];
  readonly #primary = new Records(1 << 18, 0x7f00_0000_0000);
  readonly #secondary = new Records(1 << 18, 0x7e00_0000_0000);
  readonly #comparer: Comparer;
  #nowNs = 1000 * MS;
  #slots = 0;

  constructor(lines: RuleLines = {}) {
    this.#comparer = new Comparer({
      primary: this.#primary,
      secondary: this.#secondary,
      memcmp: memcmpOf(this.#primary, this.#secondary),
      maxWaitNs: 200 * MS,
      rules: parseRules(lines),
      sink: {
        permit: () => undefined,
        finish: () => undefined,
        diverged: (found) => {
          const evidence = evidenceOf(found, this.#primary, this.#secondary);
          this.ids.push(recorder.diverged(evidence, 17, TIME_MS));
          // As a ring does soon after.
          for (const [ring, offset] of [
            [this.#primary, found.primaryOffset],
            [this.#secondary, found.secondaryOffset],
          ] as const) {
            if (offset !== undefined) ring.spoil(offset);
          }
        },
      },
    });
  }

  primary(frame: Uint8Array): void {
    this.#comparer.addPrimary(this.#slots++, this.#primary.put(frame, this.#nowNs++, 0));
  }

  secondary(frame: Uint8Array): void {
    this.#comparer.addSecondary(this.#slots++, this.#secondary.put(frame, this.#nowNs++, 0));
  }

  wait(ms: number): void {
    this.#nowNs += ms * MS;
    this.#comparer.expire(this.#nowNs);
  }
}

describe("what the comparer finds", () => {
  test("in a TCP stream is kept with both frames and the place of the difference", () => {
    const pair = new Pair();
    const open = { seq: 99, flags: SYN, options: synOptions(1460, 7) };
    for (const side of ["primary", "secondary"] as const) pair[side](tcp({ ...open }));
    // Cut differently: the difference is at another offset in each frame.
    const primary = tcp({ seq: 100, ack: 1, payload: "hello world" });
    pair.primary(primary);
    pair.secondary(tcp({ seq: 100, ack: 1, payload: "hello " }));
    const secondary = tcp({ seq: 106, ack: 1, payload: "wOrld" });
    pair.secondary(secondary);
    const kept = store.get(pair.ids[0]!)!;
    expect(kept).toMatchObject({
      class: "payload",
      streamOffset: 7,
      difference: { primaryFrameOffset: 54 + 7, secondaryFrameOffset: 54 + 1 },
      flow: parseFlow("tcp 198.18.0.2:80 > 198.18.0.9:40000"),
    });
    expect(kept.primaryFrame).toEqual(primary);
    expect(kept.secondaryFrame).toEqual(secondary);
    const lines = explain(kept).split("\n");
    expect(lines.find((line) => line.includes("[6f]"))).toContain("[4f]");
  });

  test("in a datagram, shorter on one side, is marked from where it ends", () => {
    const pair = new Pair();
    pair.primary(udp("same, and more"));
    pair.secondary(udp("same"));
    const kept = store.get(pair.ids[0]!)!;
    expect(kept.class).toBe("length");
    const view = explain(kept);
    expect(view).toContain("002e[2c 20 61 6e 64 20 6d 6f] , and mo       [                       ]");
    expect(kept.difference).toEqual({ primaryFrameOffset: 46, secondaryFrameOffset: 46 });
  });

  test("missing on one side is kept with the other's frame", () => {
    const pair = new Pair();
    const frame = udp("alone");
    pair.primary(frame);
    pair.wait(250);
    const kept = store.get(pair.ids[0]!)!;
    expect(kept.class).toBe("missing_on_secondary");
    expect(kept.primaryFrame).toEqual(frame);
    expect(kept.secondaryFrame).toBeUndefined();
    expect(kept.waitedMs).toBeGreaterThanOrEqual(200);
  });

  test("far back in a large segment is kept cut, with what is around it", () => {
    const pair = new Pair();
    const payload = (changed: number) => {
      const bytes = new Uint8Array(60_000).fill(7);
      bytes[50_000] = changed;
      return bytes;
    };
    pair.primary(tcp({ seq: 99, flags: SYN }));
    pair.secondary(tcp({ seq: 99, flags: SYN }));
    pair.primary(tcp({ seq: 100, ack: 1, payload: payload(0xaa) }));
    pair.secondary(tcp({ seq: 100, ack: 1, payload: payload(0xbb) }));
    const kept = store.get(pair.ids[0]!)!;
    expect(kept.primaryFrame).toHaveLength(2048);
    expect(kept.primaryCut?.frameBytes).toBe(60_054);
    expect(explain(kept)).toMatch(/c386\[aa\]07.*c386\[bb\]07/);
  });

  test("names its flow so that this folder's tests may write it down as text", () => {
    const v6 = { version: 6 as const };
    const fragment = { moreFragments: true, identification: 3 };
    const pairs = (payload: string): Uint8Array[] => [
      udp(payload),
      udp(payload, v6),
      udp(payload, { vlans: [12] }),
      udp(payload, { vlans: [12, 13], ...v6 }),
      udp(payload, fragment),
      ip(47, text(payload)),
      ip(132, concat(Uint8Array.from([0, 80, 1, 2, 0, 0, 0, 9, 0, 0, 0, 0]), text(payload))),
      ip(1, concat(Uint8Array.from([8, 0, 0, 0, 0, 7, 0, 1]), text(payload))),
      ethernet(0x88cc, text(payload)),
    ];
    const pair = new Pair();
    const [primary, secondary] = [pairs("payload one"), pairs("payload two")];
    for (let i = 0; i < primary.length; i++) {
      pair.primary(primary[i]!);
      pair.secondary(secondary[i]!);
    }
    expect(pair.ids).toHaveLength(primary.length);
    for (const id of pair.ids) {
      const { flow } = store.get(id)!;
      expect(flow).toEqual(parseFlow(flow.text));
    }
  });
});

describe("the advice, followed,", () => {
  const pairs: Record<string, (variant: number) => Uint8Array> = {
    "udp, the VM serves": (n) => udp(`answer ${n}`, { sourcePort: 7777 }),
    "udp, the VM is the client": (n) => udp(`query ${n}`, { sourcePort: 40000, destinationPort: 7777 }),
    "a DNS query": (n) => udp(`${n}${n} query`, { sourcePort: 40000, destinationPort: 53 }),
    "udp over IPv6": (n) => udp(`answer ${n}`, { sourcePort: 40000, destinationPort: 9, version: 6 }),
    "tcp, the VM serves": (n) => stream(n, { sourcePort: 9000 }),
    "tcp, the VM is the client": (n) => stream(n, { sourcePort: 40000, destinationPort: 9000, version: 6 }),
    "a ping": (n) => icmp(`ping ${n}`),
    "a ping over IPv6": (n) => icmp(`ping ${n}`, { version: 6 }),
    "another IP protocol": (n) => ip(47, text(`gre ${n}`)),
    sctp: (n) => ip(132, concat(Uint8Array.from([0, 80, 1, 2, 0, 0, 0, 9, 0, 0, 0, 0]), text(`${n}`))),
    udplite: (n) => ip(136, concat(Uint8Array.from([0, 80, 1, 2, 0, 8, 0, 0]), text(`${n}`))),
    "a fragment": (n) => udp(`fragment ${n}`, { fragmentOffset: 3, moreFragments: true }),
  };

  /** Variant 0 opens the connection. */
  function stream(n: number, options: TcpOptions): Uint8Array {
    return n === 0
      ? tcp({ seq: 0, flags: SYN, ...options })
      : tcp({ seq: 1, ack: 1, payload: `${n}`, ...options });
  }

  /**
   * Both sides send variant 0, then they differ, before a comparer with these rules. Returns the numbers of
   * what it finds.
   */
  function compare(frameOf: (variant: number) => Uint8Array, lines: RuleLines = {}): number[] {
    const pair = new Pair(lines);
    pair.primary(frameOf(0));
    pair.secondary(frameOf(0));
    pair.primary(frameOf(1));
    pair.secondary(frameOf(2));
    pair.wait(250);
    return pair.ids;
  }

  test.each(Object.keys(pairs))("ends divergences of %s", (name) => {
    const [id] = compare(pairs[name]!);
    const { passthrough, ignore } = explanationOf(store.get(id!)!);
    expect(compare(pairs[name]!, { passthrough: [passthrough!] })).toEqual([]);
    // And is no rule for everything.
    expect(compare((n) => ip(89, text(`other ${n}`)), { passthrough: [passthrough!] })).toHaveLength(1);
    if (ignore.length > 0) expect(compare(pairs[name]!, { ignore })).toEqual([]);
    expect(ignore.length > 0).toBe(name.includes("udp,") || name.includes("DNS") || name === "udp over IPv6");
  });
});

describe("the outcome", () => {
  const found = (port: number) => ({
    class: "payload" as const,
    flow: parseFlow(`tcp 198.18.0.2:80 > 198.18.0.9:${port}`),
    waitedNs: 5e6,
    detail: "differs",
  });
  const cost = { epoch: 18, pauseMs: 16.2, totalMs: 24.8 };

  test("is the checkpoint that came next, for all that was found before it", () => {
    const ids = [1, 2, 3].map((port) => recorder.diverged(found(port), 17, TIME_MS));
    recorder.checkpointed(cost);
    for (const id of ids) expect(store.get(id)).toMatchObject({ action: "checkpoint 18", checkpoint: cost });
  });

  test("of what was found in the epoch that the checkpoint began is the next one", () => {
    const before = recorder.diverged(found(1), 17, TIME_MS);
    const after = recorder.diverged(found(2), 18, TIME_MS);
    recorder.checkpointed(cost);
    expect(store.get(before)?.checkpoint?.epoch).toBe(18);
    expect(store.get(after)?.checkpoint).toBeUndefined();
    expect(store.get(after)?.action).toBe("a checkpoint was requested");
    recorder.checkpointed({ ...cost, epoch: 19 });
    expect(store.get(after)?.action).toBe("checkpoint 19");
    expect(store.get(before)?.action).toBe("checkpoint 18");
  });

  test("is what the agent says when there is no checkpoint", () => {
    const id = recorder.diverged(found(1), 17, TIME_MS);
    recorder.ended("released: the VM runs alone");
    recorder.checkpointed(cost);
    expect(store.get(id)).toMatchObject({ action: "released: the VM runs alone" });
    expect(store.get(id)?.checkpoint).toBeUndefined();
  });

  test("of a repeat after the checkpoint is not taken for that of the first", () => {
    const id = recorder.diverged(found(1), 17, TIME_MS);
    recorder.checkpointed(cost);
    expect(recorder.diverged(found(1), 18, TIME_MS + 100)).toBe(id);
    recorder.checkpointed({ epoch: 19, pauseMs: 99, totalMs: 99 });
    expect(store.get(id)).toMatchObject({ action: "checkpoint 18", checkpoint: cost, repeats: 1 });
  });
});
