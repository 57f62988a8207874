/**
 * Each documented difference from QEMU's colo-compare (docs/comparison.md), side by side: what QEMU does
 * with these frames, and what our comparer does. QEMU's part is tested like ours, so that the
 * documentation stays true for the QEMU in the cache.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { FIN, RST, SYN, synOptions, udp } from "../compare/frames.ts";
import { Bench } from "../compare/harness.ts";
import { DIFFERENCES, type DifferenceName } from "./differences.ts";
import { QemuCompare } from "./qemu_compare.ts";
import { Script } from "./script.ts";
import { type Comparison, runSideBySide } from "./side_by_side.ts";

/** Generous: QEMU's timers are set to a fraction of a second where they are used. */
const PATIENCE_MS = 20_000;

let qemu: QemuCompare;

beforeAll(async () => {
  qemu = await QemuCompare.start();
}, 60_000);

afterAll(async () => {
  await qemu?.stop();
});

/** Runs what `write` writes; all differences must be explained by exactly these names. */
async function play(names: DifferenceName[], write: (script: Script) => void): Promise<Comparison> {
  const script = new Script();
  write(script);
  const comparison = await runSideBySide(script.steps, qemu);
  expect([...comparison.differences.keys()].toSorted()).toEqual(names.toSorted());
  return comparison;
}

const shown = new Set<string>();

function difference(name: DifferenceName, what: string, body: () => Promise<void>): void {
  shown.add(name);
  test(`${name}: ${what}`, body, 60_000);
}

test("no difference: the same stream, cut differently", async () => {
  const { qemu, ours } = await play([], (script) => {
    script.p(1, { payload: "one two" });
    script.s(1, { payload: "one " });
    script.s(5, { payload: "two three" });
    script.p(8, { payload: " three" });
  });
  expect(qemu.released).toEqual([0, 1]);
  expect(ours.released).toEqual([0, 1]);
  expect([...qemu.asked, ...ours.asked]).toEqual([]);
});

test("no difference: other bytes", async () => {
  for (const secondary of ["wrong", "write", "wri"]) {
    const { qemu, ours } = await play([], (script) => {
      script.both(1, { payload: "x" });
      script.p(2, { payload: "right" });
      script.s(2, { payload: secondary });
    });
    expect(qemu.released).toEqual([0]);
    expect(ours.released).toEqual([0]);
    expect(qemu.asked).toEqual([1]);
    expect(ours.asked).toEqual(["payload"]);
  }
});

difference("only_ipv4_compared", "IPv6 and VLANs leave QEMU uncompared", async () => {
  for (const options of [{ version: 6 as const }, { vlans: [7] }]) {
    const { qemu, ours } = await play(["only_ipv4_compared"], (script) => {
      script.p(1, { payload: "AAAA", ...options });
      script.s(1, { payload: "BBBB", ...options });
    });
    expect(qemu.released).toEqual([0]);
    expect(qemu.asked).toEqual([]);
    expect(ours.released).toEqual([]);
    expect(ours.asked).toEqual(["payload"]);
  }
});

difference("flags_not_compared", "a reset, FIN or SYN of the primary alone leaves QEMU", async () => {
  for (const flags of [RST, FIN, SYN]) {
    const { qemu, ours } = await play(["flags_not_compared"], (script) => {
      script.both(1, { payload: "x" });
      // A SYN opens another connection on these ports, at any number.
      script.p(2, { flags, connection: flags === SYN ? 1 : 0, isn: 1000 });
      script.s(2, { payload: "more" });
    });
    expect(qemu.released).toEqual([0, 1]);
    expect(qemu.asked).toEqual([]);
    expect(ours.released).toEqual([0]);
  }
});

difference("flags_not_compared", "a FIN behind the same data leaves QEMU", async () => {
  const { qemu, ours } = await play(["flags_not_compared"], (script) => {
    script.p(1, { payload: "bye", flags: FIN });
    script.s(1, { payload: "bye" });
    script.s(4, { payload: "not yet" });
  });
  expect(qemu.released).toEqual([0]);
  expect(ours.released).toEqual([]);
  expect(ours.asked).toEqual(["flags"]);
});

difference("flags_not_compared", "SYNs that offer something else leave QEMU", async () => {
  const { qemu, ours } = await play(["flags_not_compared"], (script) => {
    script.p(0, { flags: SYN, options: synOptions(1460, 7) });
    script.s(0, { flags: SYN, options: synOptions(1400, 7), isn: 77_000 });
  });
  expect(qemu.released).toEqual([0]);
  expect(ours.released).toEqual([]);
  expect(ours.asked).toEqual(["flags"]);
});

difference(
  "acknowledgement_not_compared",
  "data and pure ACKs that acknowledge too much leave QEMU",
  async () => {
    for (const payload of ["same", ""]) {
      const { qemu, ours } = await play(["acknowledgement_not_compared"], (script) => {
        script.both(1, { payload: "x" });
        script.p(2, { payload, ack: 60 });
        script.s(2, { payload, ack: 50 });
      });
      expect(qemu.released).toEqual([0, 1]);
      expect(ours.released).toEqual([0]);
    }
  },
);

difference("acknowledgement_ahead_is_mismatch", "QEMU asks where waiting would do", async () => {
  const { qemu, ours } = await play(["acknowledgement_ahead_is_mismatch"], (script) => {
    script.p(1, { payload: "abcd", ack: 60 });
    script.s(1, { payload: "abcdefgh", ack: 50 });
    script.s(9, { ack: 60 });
  });
  expect(qemu.asked).toEqual([0]);
  expect(ours.asked).toEqual([]);
  expect(ours.released).toEqual([0]);
});

difference("last_acknowledgement_counts", "an older acknowledgement undoes a newer one", async () => {
  const { qemu, ours } = await play(["last_acknowledgement_counts"], (script) => {
    script.s(1, { payload: "abcdefgh", ack: 60 });
    script.s(9, { payload: "ij", ack: 50 });
    script.p(1, { payload: "abcd", ack: 60 });
  });
  expect(qemu.released).toEqual([]);
  expect(qemu.asked).toEqual([0]);
  expect(ours.released).toEqual([0]);
  expect(ours.asked).toEqual([]);
});

difference("last_acknowledgement_counts", "acknowledgements are compared without wrapping", async () => {
  const { qemu, ours } = await play(["last_acknowledgement_counts"], (script) => {
    // The client's numbers pass 2^32 between the two; on the wire, 4 is ahead of 4294967280.
    script.p(1, { payload: "abcd", ack: 2 ** 32 + 4 });
    script.s(1, { payload: "abcdefgh", ack: 2 ** 32 - 16 });
  });
  expect(qemu.released).toEqual([0]);
  expect(ours.released).toEqual([]);
});

difference("reused_ports", "a new connection with lower numbers leaves QEMU uncompared", async () => {
  const old = { isn: 900_000 };
  const young = { isn: 1000, connection: 1 };
  const { qemu, ours } = await play(["reused_ports"], (script) => {
    script.both(0, { flags: SYN, ...old });
    script.both(1, { payload: "old", ...old });
    script.both(0, { flags: SYN, ...young });
    script.p(1, { payload: "AAAA", ...young });
    script.s(1, { payload: "BBBB", ...young });
  });
  expect(qemu.released).toEqual([0, 1, 2, 3]);
  expect(qemu.asked).toEqual([]);
  expect(ours.released).toEqual([0, 1, 2]);
  expect(ours.asked).toEqual(["payload"]);
});

difference("padding_is_payload", "other bytes leave QEMU after a padded ACK", async () => {
  const { qemu, ours } = await play(["padding_is_payload"], (script) => {
    script.both(1, { payload: "x" });
    script.both(2, { padding: 6 });
    script.p(2, { payload: "AAAAAA" });
    script.s(2, { payload: "BBBBBB" });
    script.s(8);
  });
  expect(qemu.released).toEqual([0, 1, 2]);
  expect(qemu.asked).toEqual([]);
  expect(ours.released).toEqual([0, 1]);
  expect(ours.asked).toEqual(["payload"]);
});

difference("padding_is_payload", "the same data, padded on one side, is held by QEMU", async () => {
  const { qemu, ours } = await play(["padding_is_payload"], (script) => {
    script.p(1, { payload: "ab", padding: 4 });
    script.s(1, { payload: "ab" });
  });
  expect(qemu.released).toEqual([]);
  expect(ours.released).toEqual([0]);
});

difference("place_not_checked", "the same bytes at another place leave QEMU", async () => {
  const { qemu, ours } = await play(["place_not_checked"], (script) => {
    script.both(1, { payload: "x" });
    script.p(2, { payload: "abcd" });
    script.s(4, { payload: "abcd" });
    script.s(2, { payload: "ZZ" });
  });
  expect(qemu.released).toEqual([0, 1]);
  expect(qemu.asked).toEqual([]);
  expect(ours.released).toEqual([0]);
  expect(ours.asked).toEqual(["payload"]);
});

difference("place_not_checked", "a repetition together with new bytes is a mismatch to QEMU", async () => {
  const { qemu, ours } = await play(["place_not_checked"], (script) => {
    script.both(1, { payload: "abcd" });
    script.p(3, { payload: "cdef" });
    script.s(5, { payload: "ef" });
  });
  expect(qemu.asked).toEqual([1]);
  expect(ours.released).toEqual([0, 1]);
  expect(ours.asked).toEqual([]);
});

difference("gaps_skipped", "what fills a gap leaves QEMU uncompared", async () => {
  const { qemu, ours } = await play(["gaps_skipped"], (script) => {
    script.both(1, { payload: "x" });
    script.both(6, { payload: "later" });
    script.p(2, { payload: "AAAA" });
    script.s(2, { payload: "BBBB" });
    script.s(11);
  });
  expect(qemu.released).toEqual([0, 1, 2]);
  expect(qemu.asked).toEqual([]);
  expect(ours.released).toEqual([0]);
  expect(ours.asked).toEqual(["payload"]);
});

difference("midstream_is_unverified", "what lies below the first segment seen is held", async () => {
  const { qemu, ours } = await play(["midstream_is_unverified"], (script) => {
    script.both(105, { payload: "56789" });
    script.s(100, { payload: "01234" });
    script.p(100, { payload: "01234" });
  });
  expect(qemu.released).toEqual([0, 1]);
  expect(ours.released).toEqual([0]);
  expect(ours.asked).toEqual([]);
});

difference("lone_segment_waits", "an ACK or a repetition is held by QEMU", async () => {
  for (const payload of ["", "abcd"]) {
    const { qemu, ours } = await play(["lone_segment_waits"], (script) => {
      script.both(1, { payload: "abcd", ack: 60 });
      script.p(payload === "" ? 5 : 1, { payload, ack: 60 });
    });
    expect(qemu.released).toEqual([0]);
    expect(ours.released).toEqual([0, 1]);
  }
});

difference("checkpoint_forgotten", "a repetition of what a checkpoint covers is held by QEMU", async () => {
  const { qemu, ours } = await play(["checkpoint_forgotten"], (script) => {
    script.p(1, { payload: "abcd" });
    script.checkpoint();
    script.p(1, { payload: "abcd" });
  });
  expect(qemu.released).toEqual([]);
  expect(ours.released).toEqual([1]);
});

difference("arrival_order", "QEMU releases by sequence number", async () => {
  const { qemu, ours } = await play(["arrival_order"], (script) => {
    script.both(1, { payload: "x" });
    script.p(6, { payload: "efgh" });
    script.p(2, { payload: "abcd" });
    script.s(2, { payload: "abcd" });
    script.s(6, { payload: "efgh" });
  });
  expect(qemu.released).toEqual([0, 2, 1]);
  expect(ours.released).toEqual([0, 1, 2]);
});

difference("diverged_flow_is_held", "QEMU goes on releasing a flow that has diverged", async () => {
  const { qemu, ours } = await play(["diverged_flow_is_held"], (script) => {
    script.both(1, { payload: "abcd" });
    script.p(5, { payload: "AAAA" });
    script.s(5, { payload: "BBBB" });
    script.p(1, { payload: "abcd" });
  });
  expect(qemu.asked).toEqual([1, 1]);
  expect(ours.asked).toEqual(["payload"]);
  expect(qemu.released).toEqual([0, 2]);
  expect(ours.released).toEqual([0]);
});

difference("early_datagram_is_mismatch", "a datagram ahead of its counterpart makes QEMU ask", async () => {
  const { qemu, ours } = await play(["early_datagram_is_mismatch"], (script) => {
    script.udp("primary", "a");
    script.udp("primary", "b");
    script.udp("secondary", "a");
    script.udp("secondary", "b");
  });
  expect(qemu.asked).toEqual([1]);
  expect(ours.asked).toEqual([]);
  expect(ours.released).toEqual([0, 1]);
});

difference("headers_compared", "another checksum or identification makes QEMU ask", async () => {
  const checksum = await play(["headers_compared"], (script) => {
    script.udp("primary", "same", { checksum: 0x1234 });
    script.udp("secondary", "same", { checksum: 0x4321 });
  });
  const identification = await play(["headers_compared"], (script) => {
    script.ip("primary", 47, "tunnelled", { identification: 7 });
    script.ip("secondary", 47, "tunnelled", { identification: 8 });
  });
  for (const { qemu, ours } of [checksum, identification]) {
    expect(qemu.asked).toEqual([0]);
    expect(ours.asked).toEqual([]);
    expect(ours.released).toEqual([0]);
  }
});

difference("datagram_order_ignored", "QEMU takes datagrams in any order", async () => {
  const { qemu, ours } = await play(["datagram_order_ignored", "diverged_flow_is_held"], (script) => {
    script.udp("primary", "a");
    script.udp("primary", "b");
    script.udp("secondary", "b");
    script.udp("secondary", "a");
  });
  expect(qemu.released).toEqual([1, 0]);
  expect(qemu.asked).toEqual([]);
  expect(ours.released).toEqual([]);
  expect(ours.asked).toEqual(["payload"]);
});

difference(
  "fragments_not_put_together",
  "the same datagram, cut elsewhere, never matches in QEMU",
  async () => {
    const { qemu, ours } = await play(["fragments_not_put_together"], (script) => {
      script.fragments("primary", "one datagram in two", 8);
      script.fragments("secondary", "one datagram in two", 16);
    });
    expect(qemu.released).toEqual([]);
    expect(qemu.asked).toEqual([0]);
    expect(ours.released).toEqual([0, 1]);
    expect(ours.asked).toEqual([]);
  },
);

difference(
  "fragments_not_put_together",
  "a fragment leaves QEMU without the rest of its datagram",
  async () => {
    const { qemu, ours } = await play(["fragments_not_put_together"], (script) => {
      script.fragments("primary", "beginning AAAA", 16);
      script.fragments("secondary", "beginning BBBB", 16);
    });
    expect(qemu.released).toEqual([0]);
    // The first bytes of the other fragment are ports to QEMU, so the two never meet.
    expect(qemu.asked).toEqual([]);
    expect(ours.released).toEqual([]);
    expect(ours.asked).toEqual(["payload"]);
  },
);

difference("datagrams_reversed", "QEMU's checkpoint turns datagrams round", async () => {
  const { qemu, ours } = await play(["datagrams_reversed"], (script) => {
    for (const payload of ["a", "b", "c"]) script.udp("primary", payload);
  });
  expect(qemu.releasedByCheckpoints).toEqual([2, 1, 0]);
  expect(ours.releasedByCheckpoints).toEqual([0, 1, 2]);
});

difference(
  "checkpoint_by_connection",
  "QEMU's checkpoint releases one connection after the other",
  async () => {
    const first = new Script();
    const second = new Script();
    first.p(1, { payload: "a" });
    second.p(1, { payload: "b" });
    first.p(2, { payload: "c" });
    const [a, c] = first.steps;
    const [b] = second.steps;
    if (b.side !== "checkpoint") b.content.flow = 1;
    const { differences, qemu: theirs, ours } = await runSideBySide([a, b, c], qemu);
    expect([...differences.keys()]).toEqual(["checkpoint_by_connection"]);
    expect(theirs.releasedByCheckpoints).toEqual([0, 2, 1]);
    expect(ours.releasedByCheckpoints).toEqual([0, 1, 2]);
  },
);

// What a single sequence does not show.

function extra(name: string, what: string, body: () => Promise<void>): void {
  shown.add(name);
  test(`${name}: ${what}`, body, 60_000);
}

async function withQemu(
  options: Parameters<typeof QemuCompare.start>[0],
  body: (qemu: QemuCompare) => Promise<void>,
): Promise<void> {
  const qemu = await QemuCompare.start(options);
  try {
    await body(qemu);
  } finally {
    await qemu.stop();
  }
}

extra("queue_overflow_drops", "the 1026th frame that waits is dropped by QEMU", async () => {
  const frames = Array.from({ length: 1100 }, (_, i) => udp(`${i}`, { source4: "198.19.250.1" }));
  const held = await qemu.addPrimaryBurst(frames);
  expect(held.released).toEqual([]);
  // The drop is not a reason to ask.
  expect(held.asked).toBe(0);
  const { released } = await qemu.checkpoint();
  await qemu.drainOutput(released, 1025);
  expect(released).toHaveLength(1025);

  const bench = new Bench({ limits: { heldFramesPerFlowMax: 1024 } });
  for (const frame of frames) bench.p(frame);
  expect(bench.classes).toEqual(["overflow"]);
  bench.checkpoint();
  expect(bench.released).toHaveLength(1100);
});

extra("output_reversed", "when the reader is slow, QEMU sends the newest first", async () => {
  const script = new Script();
  // More than a socket takes.
  const bytes = 10_000;
  for (let i = 0; i < 1000; i++) script.p(1 + i * bytes, { payload: "x".repeat(bytes) });
  const frames = script.steps.map((step) => (step.side === "checkpoint" ? new Uint8Array(0) : step.frame));
  await qemu.addPrimaryBurst(frames);
  const released = await qemu.checkpointUnread();
  await qemu.drainOutput(released, frames.length);
  expect(released).toHaveLength(frames.length);
  // Sequence numbers in order, from 1001 in steps of 10 000.
  const order = released.map((frame) => (Buffer.from(frame).readUInt32BE(38) - 1001) / bytes);
  expect(order.toSorted((a, b) => a - b)).toEqual(frames.map((_, i) => i));
  expect(order.filter((slot, at) => at > 0 && slot < order[at - 1]).length).toBeGreaterThan(100);

  const bench = new Bench({ bytes: 12 << 20 });
  for (const frame of frames) bench.p(frame);
  bench.checkpoint();
  expect(bench.released).toEqual(frames.map((_, i) => i));
});

extra("table_overflow_drops", "more than 16 384 flows: QEMU loses what it holds", async () => {
  const frames: Uint8Array[] = [];
  for (let i = 0; i < 16_500; i++) {
    frames.push(udp("x", { sourcePort: 1 + (i & 0x3fff), destinationPort: 1 + (i >> 14) }));
  }
  await withQemu({}, async (own) => {
    await own.addPrimaryBurst(frames);
    const { released } = await own.checkpoint();
    expect(released.length).toBeLessThan(200);
    expect(released.length).toBeGreaterThan(0);
  });
  const bench = new Bench({ bytes: 4 << 20 });
  for (const frame of frames) bench.p(frame);
  bench.checkpoint();
  expect(bench.released).toHaveLength(frames.length);
});

extra("removal_drops", "object-del, a step of QEMU's failover, loses what is held", async () => {
  const frames = Array.from({ length: 20 }, (_, i) => udp(`${i}`));
  await withQemu({}, async (own) => {
    await own.addPrimaryBurst(frames);
    await own.qmp.execute("object-del", { id: "compare" });
    expect(await own.releasedUntilClosed()).toEqual([]);
  });
  const bench = new Bench();
  for (const frame of frames) bench.p(frame);
  expect(bench.comparer.releaseAll()).toBe(20);
  expect(bench.released).toEqual(frames.map((_, i) => i));
});

extra("asks_again_and_again", "each further frame of a diverged flow makes QEMU ask again", async () => {
  const options = { source4: "198.19.250.2" };
  await qemu.addPrimary(udp("A", options));
  let asked = (await qemu.addSecondary(udp("B", options))).asked;
  for (let i = 0; i < 50; i++) asked += (await qemu.addPrimary(udp(`A${i}`, options))).asked;
  expect(asked).toBe(51);
  await qemu.checkpoint();

  const bench = new Bench();
  bench.p(udp("A"));
  bench.s(udp("B"));
  for (let i = 0; i < 50; i++) bench.p(udp(`A${i}`));
  expect(bench.divergences).toHaveLength(1);
});

test("no difference: what waits too long, on either side, is a reason to ask and stays held", async () => {
  await withQemu({ compareTimeoutMs: 50, scanCycleMs: 50 }, async (own) => {
    for (const side of ["primary", "secondary"] as const) {
      const frame = udp(side, { source4: "198.19.250.3" });
      if (side === "primary") await own.addPrimary(frame);
      else await own.addSecondary(frame);
      const deadlineMs = performance.now() + PATIENCE_MS;
      let asked = 0;
      while (asked === 0 && performance.now() < deadlineMs) {
        const reaction = await own.reaction();
        expect(reaction.released).toEqual([]);
        asked += reaction.asked;
        await Bun.sleep(10);
      }
      expect(asked).toBeGreaterThan(0);
      expect((await own.checkpoint()).released).toHaveLength(side === "primary" ? 1 : 0);
    }
  });
  const bench = new Bench({ maxWaitNs: 50e6 });
  bench.p(udp("primary", { sourcePort: 1 }));
  bench.s(udp("secondary", { sourcePort: 2 }));
  bench.wait(60);
  expect(bench.classes).toEqual(["missing_on_secondary", "missing_on_primary"]);
  expect(bench.released).toEqual([]);
}, 60_000);

test("docs/comparison.md names every difference, and each has a test here", () => {
  const documentation = readFileSync(join(import.meta.dir, "../../docs/comparison.md"), "utf8");
  const rows = [...documentation.matchAll(/^\| `([a-z0-9_]+)` \|/gm)].map((match) => match[1]);
  expect(rows.toSorted()).toEqual([...shown].toSorted());
  expect(Object.keys(DIFFERENCES).filter((name) => !shown.has(name))).toEqual([]);
});
