/**
 * Captures larger than the window, larger than memory should be, and captures that have nothing in common.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { closeSync, openSync, statSync, writeSync } from "node:fs";
import { FrameWindow } from "../../src/capture/frame_window.ts";
import { tcp, udp } from "../compare/frames.ts";
import { CaptureFolder, captureBytes } from "./capture_files.ts";
import { compareCommandLine, reportOf } from "./command.ts";
import { comparer, expectConsistent } from "./comparison.ts";
import { Conversation, flipped, pattern } from "./conversation.ts";

const folder = new CaptureFolder();
afterAll(() => folder.remove());
const compare = comparer(folder);

const MIB = 2 ** 20;
const WINDOW_1 = { windowMib: 1 };

/** About 1 MiB of frames of one connection. */
const bulk = (clientPort: number, bytes = MIB, data = pattern(bytes, clientPort)) =>
  new Conversation({ clientPort, segmentBytes: 1400, guestIsn: clientPort * 7_000_000 })
    .open()
    .guest(data)
    .close().frames;

describe("the window", () => {
  test("holds frames until they are given back, in any order", () => {
    const window = new FrameWindow(MIB);
    const kept: { slot: number; fill: number }[] = [];
    let number = 0;
    let state = 1;
    const random = (n: number) => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      return (state >>> 8) % n;
    };
    let refused = 0;
    for (let round = 0; round < 4_000; round++) {
      const bytes = random(20_000);
      const slot = window.place(bytes, ++number, 5);
      if (slot < 0) {
        refused++;
        const [{ slot: gone, fill }] = kept.splice(random(Math.min(kept.length, 5)), 1) as [(typeof kept)[0]];
        const at = window.frameAt(gone);
        const length = window.view.getUint32(window.offset(gone) + 8, true);
        expect(window.bytes.subarray(at, at + length).every((byte) => byte === fill)).toBe(true);
        window.done(gone);
        expect(() => window.done(gone)).toThrow("twice");
        continue;
      }
      expect(window.numberOf(slot)).toBe(number);
      const fill = number & 0xff;
      window.bytes.fill(fill, window.frameAt(slot), window.frameAt(slot) + bytes);
      kept.push({ slot, fill });
      expect(window.frames).toBe(kept.length);
    }
    expect(refused).toBeGreaterThan(500);
    for (const { slot } of kept) window.done(slot);
    expect(window.oldest()).toBe(-1);
    expect(window.liveBytes).toBe(0);
    window.close();
  });

  test("need not hold a whole connection", () => {
    const data = pattern(5 * MIB, 4);
    const changed = flipped(data, 5 * MIB - 3);
    expect(compare(bulk(1, 0, data), bulk(1, 0, data), WINDOW_1)).toMatchObject({ same: true });
    const report = compare(bulk(1, 0, data), bulk(1, 0, changed), WINDOW_1);
    expect(report.divergences).toMatchObject([{ class: "payload", stream_offset: 5 * MIB - 3 }]);
  });

  test("makes up for captures that lie apart by less than it holds", () => {
    const [a, b, c] = [bulk(1, MIB / 2), bulk(2, MIB / 2), bulk(3, MIB / 2)];
    expect(compare([...a, ...b, ...c], [...b, ...a, ...c], WINDOW_1)).toMatchObject({ same: true });
  });

  test("gives way where one capture has more in front, and finds the rest equal", () => {
    const extra = [11, 12, 13, 14, 15].flatMap((port) => bulk(port));
    const common = [1, 2, 3].flatMap((port) => bulk(port));
    for (const [primary, secondary, side] of [
      [[...extra, ...common], common, "primary"],
      [common, [...extra, ...common], "secondary"],
    ] as const) {
      const report = compare(primary, secondary, WINDOW_1);
      expect(report.compared_bytes).toBe(3 * MIB);
      // Both directions of the five.
      expect(report.divergences_total).toBe(10);
      for (const divergence of report.divergences) {
        expect(divergence.class).toBe("overflow");
        expect(divergence.detail).toStartWith("not comparable within a window of 1 MiB: ");
        expect(divergence.flow).toMatch(/:1[1-5]\b/);
        expect(divergence[side]).not.toBeNull();
      }
    }
  });

  test("passes over a gap that both captures have, however much follows it", () => {
    const data = pattern(3 * MIB, 5);
    // Segment 100 of the answer; each is followed by its acknowledgement.
    const holed = (bytes: Uint8Array) => bulk(1, 0, bytes).filter((_, i) => i !== 3 + 2 * 100);
    expect(compare(holed(data), holed(data), WINDOW_1)).toMatchObject({
      same: true,
      gap_bytes: 1400,
      compared_bytes: 3 * MIB - 1400,
    });
  });

  test("a flow that waits for ever is reported, the others are not held up", () => {
    const lost = udp("only here", { sourcePort: 9 });
    const rest = bulk(1, 3 * MIB);
    const report = compare([lost, ...rest], rest, WINDOW_1);
    expect(report).toMatchObject({ divergences_total: 1, compared_bytes: 3 * MIB });
    expect(report.divergences).toMatchObject([{ class: "overflow", primary: { frame: 1 }, secondary: null }]);
  });

  test("is bounded by frames, too", () => {
    const small = (from: number) =>
      Array.from({ length: 5_000 }, (_, i) => udp("x", { sourcePort: from + i }));
    const report = compare(small(1), small(10_001), WINDOW_1);
    expect(report.divergences_total).toBe(10_000);
    expect(report.divergences[0]?.class).toBe("overflow");
    expect(report.primary).toMatchObject({ frames_compared: 0, frames_not_compared: 5_000 });
  });

  test("is given up by segments that wait for their stream's numbers", () => {
    // The secondary has the other direction only, so that these acknowledge what the primary never shows.
    const frames = bulk(1, 2 * MIB);
    const report = compare(
      frames.filter((frame) => frame[29] === 2),
      frames.filter((frame) => frame[29] === 9),
      WINDOW_1,
    );
    expect(report.divergences_total).toBe(2);
    expect(report.compared_bytes).toBe(0);
  });
});

describe("memory", () => {
  const CONNECTIONS = 20;
  /** The same number of bytes in segments of either size. */
  const CONNECTION_BYTES = 8 * 1448 * 1400;
  const PAYLOAD_BYTES = CONNECTIONS * CONNECTION_BYTES;

  /**
   * A capture of more than 300 MB, written piece by piece: connections side by side, their bytes from one
   * pattern.
   */
  function writeLarge(isn: number, segmentBytes: number, port: number): string {
    const path = folder.next();
    const fd = openSync(path, "w");
    const data = pattern(1 << 16, 6);
    writeSync(fd, captureBytes([]));
    const template = captureBytes([tcp({ ack: 1, payload: new Uint8Array(segmentBytes) })]).subarray(24);
    const block = new Uint8Array(512 * template.length);
    const view = new DataView(block.buffer);
    let used = 0;
    const FRAME = 16;
    const PAYLOAD = FRAME + 54;
    for (let at = 0; at < CONNECTION_BYTES; at += segmentBytes) {
      for (let connection = 0; connection < CONNECTIONS; connection++) {
        const record = used;
        block.set(template, record);
        // Every connection's payload begins elsewhere in the pattern.
        const from = (at + connection * 3_001) & 0xffff;
        const first = Math.min(segmentBytes, data.length - from);
        block.set(data.subarray(from, from + first), record + PAYLOAD);
        block.set(data.subarray(0, segmentBytes - first), record + PAYLOAD + first);
        view.setUint16(record + FRAME + 36, port + connection);
        view.setUint32(record + FRAME + 38, (isn + at) >>> 0);
        used += template.length;
        if (used === block.length) {
          writeSync(fd, block);
          used = 0;
        }
      }
    }
    writeSync(fd, block, 0, used);
    closeSync(fd);
    expect(statSync(path).size).toBeGreaterThan(300e6);
    return path;
  }

  test("does not grow with the captures, whether they agree or have nothing in common", async () => {
    const small = folder.capture(bulk(1));
    const { peakBytes: base } = await compareCommandLine(small, small);
    expect(base).toBeGreaterThan(10 * MIB);
    const primary = writeLarge(5, 1448, 10_000);

    const secondary = writeLarge(3_000_000_000, 1400, 10_000);
    const same = await compareCommandLine("--json", primary, secondary);
    expect(same).toMatchObject({ status: 0, stderr: "" });
    expect(reportOf(same)).toMatchObject({ same: true, compared_bytes: PAYLOAD_BYTES });
    expect(same.peakBytes - base).toBeLessThan(PAYLOAD_BYTES / 4);

    const strange = writeLarge(5, 1400, 20_000);
    const nothing = await compareCommandLine("--json", "--window", "16", primary, strange);
    expect(nothing).toMatchObject({ status: 1, stderr: "" });
    expectConsistent(reportOf(nothing));
    expect(reportOf(nothing)).toMatchObject({ compared_bytes: 0, divergences_total: 2 * CONNECTIONS });
    expect(nothing.peakBytes - base).toBeLessThan(PAYLOAD_BYTES / 4);
  }, 120_000);
});
