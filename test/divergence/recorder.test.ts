/**
 * From the comparer's report on real frames to the record and its outcome: what the agent does, without its
 * VMs.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { evidenceOf } from "../../src/datapath/evidence.ts";
import { explain } from "../../src/divergence/explain.ts";
import { DivergenceRecorder } from "../../src/divergence/recorder.ts";
import { DivergenceStore } from "../../src/divergence/store.ts";
import { concat, ethernet, ip, SYN, synOptions, tcp, text, udp } from "../compare/frames.ts";
import { Bench } from "../compare/harness.ts";
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

/** Notes what the bench's comparer has found so far, as the worker and the primary's duty do. */
function note(bench: Bench, epoch = 17): number[] {
  return bench.divergences
    .splice(0)
    .map((found) => recorder.diverged(evidenceOf(found, bench.primary, bench.secondary), epoch, TIME_MS));
}

describe("what the comparer finds", () => {
  test("in a TCP stream is kept with both frames and the place of the difference", () => {
    const bench = new Bench();
    const open = { seq: 99, flags: SYN, options: synOptions(1460, 7) };
    for (const side of ["p", "s"] as const) bench[side](tcp({ ...open }));
    // Cut differently: the difference is at another offset in each frame.
    const primary = tcp({ seq: 100, ack: 1, payload: "hello world" });
    bench.p(primary);
    bench.s(tcp({ seq: 100, ack: 1, payload: "hello " }));
    const secondary = tcp({ seq: 106, ack: 1, payload: "wOrld" });
    bench.s(secondary);
    const [id] = note(bench);
    const kept = store.get(id!)!;
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
    const bench = new Bench();
    bench.p(udp("same, and more"));
    bench.s(udp("same"));
    const kept = store.get(note(bench)[0]!)!;
    expect(kept.class).toBe("length");
    const view = explain(kept);
    expect(view).toContain("73 61 6d 65[2c 20 61 6e] same, an");
    expect(view).toContain("73 61 6d 65[           ] same");
  });

  test("missing on one side is kept with the other's frame", () => {
    const bench = new Bench({ maxWaitNs: 200e6 });
    const frame = udp("alone");
    bench.p(frame);
    bench.wait(250);
    const kept = store.get(note(bench)[0]!)!;
    expect(kept.class).toBe("missing_on_secondary");
    expect(kept.primaryFrame).toEqual(frame);
    expect(kept.secondaryFrame).toBeUndefined();
    expect(kept.waitedMs).toBeGreaterThanOrEqual(200);
  });

  test("far back in a large segment is kept cut, with what is around it", () => {
    const bench = new Bench();
    const payload = (changed: number) => {
      const bytes = new Uint8Array(60_000).fill(7);
      bytes[50_000] = changed;
      return bytes;
    };
    bench.p(tcp({ seq: 99, flags: SYN }));
    bench.s(tcp({ seq: 99, flags: SYN }));
    bench.p(tcp({ seq: 100, ack: 1, payload: payload(0xaa) }));
    bench.s(tcp({ seq: 100, ack: 1, payload: payload(0xbb) }));
    const kept = store.get(note(bench)[0]!)!;
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
    const bench = new Bench();
    const [primary, secondary] = [pairs("payload one"), pairs("payload two")];
    for (let i = 0; i < primary.length; i++) {
      bench.p(primary[i]!);
      bench.s(secondary[i]!);
    }
    expect(bench.divergences).toHaveLength(primary.length);
    for (const id of note(bench)) {
      const { flow } = store.get(id)!;
      expect(flow).toEqual(parseFlow(flow.text));
    }
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
    expect(store.get(after)?.action).toBe("a checkpoint was asked for");
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
