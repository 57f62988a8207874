import { describe, expect, test } from "bun:test";
import { FIN, SYN, tcp, udp } from "./frames.ts";
import { Bench } from "./harness.ts";

const data = (seq: number, payload: string, port = 80) => tcp({ seq, ack: 5, payload, sourcePort: port });

describe("limits", () => {
  test("held frames of one flow: reported once, nothing lost, order kept, other flows go on", () => {
    const bench = new Bench({ limits: { heldFramesPerFlowMax: 3 } });
    const held = [0, 1, 2, 3, 4].map((i) => bench.p(udp(`${i}`)));
    expect(bench.classes).toEqual(["overflow"]);
    expect(bench.divergences[0].flow).toContain("udp 198.18.0.2:53");
    for (let i = 0; i < 5; i++) bench.s(udp(`${i}`));
    expect(bench.released).toEqual([]);
    const other = bench.p(data(1, "x"));
    bench.s(data(1, "x"));
    expect(bench.released).toEqual([other]);
    expect(bench.checkpoint().released).toBe(5);
    expect(bench.released).toEqual([other, ...held]);
    bench.p(udp("after"));
    bench.s(udp("after"));
    expect(bench.released).toHaveLength(7);
    expect(bench.divergences).toHaveLength(1);
  });

  test("held frames in all: later ones of every flow wait for the checkpoint, in order", () => {
    const bench = new Bench({ limits: { heldFramesMax: 2 } });
    const a = bench.p(udp("a"));
    const b = bench.p(udp("b", { sourcePort: 2 }));
    const c = bench.p(udp("c"));
    const d = bench.p(udp("d", { sourcePort: 3 }));
    expect(bench.classes).toEqual(["overflow"]);
    bench.s(udp("b", { sourcePort: 2 }));
    expect(bench.released).toEqual([b]);
    bench.s(udp("a"));
    bench.s(udp("c"));
    expect(bench.released).toEqual([b, a]);
    bench.checkpoint();
    expect(bench.released).toEqual([b, a, c, d]);
    expect(bench.comparer.stats.overflowedFrames).toBe(2);
    const e = bench.p(udp("e"));
    bench.s(udp("e"));
    expect(bench.isReleased(e)).toBe(true);
  });

  test("frames newer than the checkpoint that had passed a limit ask for another one", () => {
    const bench = new Bench({ limits: { heldFramesMax: 2 } });
    bench.p(udp("a"));
    const boundary = bench.nowNs;
    bench.p(udp("b"));
    bench.p(udp("c"));
    bench.checkpoint(boundary);
    expect(bench.released).toEqual([0]);
    expect(bench.classes).toEqual(["overflow", "overflow"]);
    // What comes behind them waits for them.
    bench.s(udp("b"));
    bench.p(udp("d"));
    bench.s(udp("c"));
    bench.s(udp("d"));
    bench.checkpoint();
    expect(bench.released).toEqual([0, 1, 2, 3]);
    expect(bench.classes).toEqual(["overflow", "overflow"]);
  });

  test("flows: frames of flows beyond the table are held, also when room appears", () => {
    const bench = new Bench({ limits: { flowsMax: 2 } });
    const [a, b, c] = [1, 2, 3].map((port) => bench.p(udp("x", { sourcePort: port })));
    expect(bench.classes).toEqual(["overflow"]);
    bench.s(udp("x", { sourcePort: 1 }));
    bench.s(udp("x", { sourcePort: 2 }));
    expect(bench.released).toEqual([a, b]);
    bench.wait(10_000);
    bench.s(udp("x", { sourcePort: 3 }));
    const d = bench.p(udp("y", { sourcePort: 3 }));
    bench.s(udp("y", { sourcePort: 3 }));
    expect(bench.released).toEqual([a, b]);
    bench.checkpoint();
    expect(bench.released).toEqual([a, b, c, d]);
  });

  test("secondary frames that wait: of one flow and in all", () => {
    const one = new Bench({ limits: { pendingFramesPerFlowMax: 2 } });
    for (let i = 0; i < 4; i++) one.s(udp(`${i}`));
    expect(one.classes).toEqual(["overflow"]);
    expect(one.finished).toHaveLength(4);
    const held = one.p(udp("0"));
    expect(one.isReleased(held)).toBe(false);
    one.checkpoint();
    expect(one.isReleased(held)).toBe(true);

    const all = new Bench({ limits: { pendingFramesMax: 2 } });
    for (let i = 0; i < 4; i++) all.s(data(1, "x", i));
    expect(all.classes).toEqual(["overflow", "overflow"]);
    expect(all.comparer.stats.pendingFrames).toBe(2);
    all.checkpoint();
    expect(all.comparer.stats.pendingFrames).toBe(0);
  });

  test("secondary flows alone cannot fill the table unnoticed", () => {
    const bench = new Bench({ limits: { flowsMax: 2 } });
    for (let port = 1; port <= 5; port++) bench.s(udp("x", { sourcePort: port }));
    expect(bench.classes).toEqual(["overflow"]);
    expect(bench.comparer.stats.pendingFrames).toBe(2);
  });

  test("a limit that makes no sense is refused with a sentence", () => {
    expect(() => new Bench({ limits: { flowsMax: 0 } })).toThrow(
      "The comparer's limit flowsMax is 0; give an integer",
    );
  });
});

describe("flows are forgotten", () => {
  test("when idle, closed for a while, or closed two checkpoints ago; never with something held", () => {
    const bench = new Bench();
    const pass = (frame: Uint8Array) => {
      bench.p(frame);
      bench.s(frame);
    };
    pass(udp("quiet"));
    pass(tcp({ seq: 1, ack: 5, payload: "x", flags: FIN }));
    bench.p(udp("held", { sourcePort: 9 }));
    expect(bench.comparer.stats.flows).toBe(3);
    bench.wait(11_000);
    expect(bench.comparer.stats.flows).toBe(2);
    bench.wait(300_000);
    expect(bench.comparer.stats.flows).toBe(1);
    bench.checkpoint();
    pass(tcp({ seq: 1, ack: 5, payload: "x", flags: FIN }));
    bench.checkpoint();
    expect(bench.comparer.stats.flows).toBe(2);
    bench.checkpoint();
    expect(bench.comparer.stats.flows).toBe(1);
  });

  test("silent ones make room when the table is full", () => {
    const bench = new Bench({ limits: { flowsMax: 4 } });
    for (let round = 0; round < 50; round++) {
      for (let i = 0; i < 4; i++) {
        const sourcePort = round * 4 + i + 1;
        bench.p(tcp({ seq: 1, ack: 5, flags: SYN, sourcePort }));
        bench.s(tcp({ seq: 9, ack: 5, flags: SYN, sourcePort }));
      }
      bench.wait(2000);
    }
    expect(bench.released).toHaveLength(200);
    expect(bench.divergences).toEqual([]);
  });
});
