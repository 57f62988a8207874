/** The capture files that are written, read by tcpdump and by libpcap. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writePcapng } from "../../src/divergence/pcapng.ts";
import type { DivergenceRecord } from "../../src/divergence/record.ts";
import { redact } from "../../src/divergence/redact.ts";
import { Arena } from "../../src/ffi/libc.ts";
import { PcapFile } from "../../src/ffi/pcap.ts";
import { dnsQuery, largeSegment, noise, record, TIME_MS, tlsHandshake } from "./records.ts";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-pcapng-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

function save(records: DivergenceRecord[]): string {
  const path = join(directory, "frames.pcapng");
  writeFileSync(path, writePcapng(records));
  return path;
}

/** Every packet as libpcap gives it. */
function packetsOf(path: string): { bytes: Uint8Array; wireBytes: number }[] {
  const file = new PcapFile(path);
  const arena = new Arena(1 << 18);
  const at = arena.allocate(1 << 17);
  const packets = [];
  expect(file.linkTypeName).toBe("EN10MB");
  while (file.next()) {
    file.copyTo(arena.address + at);
    packets.push({ bytes: arena.bytes.slice(at, at + file.capturedBytes), wireBytes: file.wireBytes });
  }
  file.close();
  arena.close();
  return packets;
}

function tcpdump(path: string, ...options: string[]): string[] {
  const run = Bun.spawnSync(["tcpdump", "-n", ...options, "-r", path], {
    env: { ...process.env, TZ: "UTC" },
  });
  expect({ status: run.exitCode, errors: run.stderr.toString() }).toEqual({
    status: 0,
    errors: `reading from file ${path}, link-type EN10MB (Ethernet), snapshot length 262144\n`,
  });
  return run.stdout.toString().trimEnd().split("\n");
}

describe("a capture file", () => {
  test("is read by tcpdump, with the time of the record", () => {
    const lines = tcpdump(save([tlsHandshake(), dnsQuery()]), "-tttt", "--nano");
    expect(lines).toHaveLength(4);
    for (const line of lines) expect(line).toStartWith("2026-01-02 03:04:05.678000000 ");
    expect(lines[0]).toContain("IP 198.18.0.2.443 > 198.18.0.9.40000: Flags [.], seq 2001:2128, ack 1");
    expect(lines[2]).toContain("IP 198.18.0.2.40000 > 198.18.0.9.53: 48879+ A? example. (25)");
    expect(lines[3]).toContain("4847+ A? example.");
  });

  test("gives every byte back, whatever the length", () => {
    const frames = [0, 1, 2, 3, 4, 5, 60, 1514, 2048].map((length) => noise(length, length));
    const records = frames.map((frame, i) =>
      record({ id: i + 1, primaryFrame: frame, secondaryFrame: noise(frame.length, 77) }),
    );
    const packets = packetsOf(save(records));
    expect(packets).toEqual(
      frames.flatMap((frame) => [
        { bytes: frame, wireBytes: frame.length },
        { bytes: noise(frame.length, 77), wireBytes: frame.length },
      ]),
    );
  });

  test("has a frame that was cut at its full length, with its end where it was", () => {
    const large = largeSegment();
    const [primary] = packetsOf(save([large]));
    const { gapOffset, gapBytes, frameBytes } = large.primaryCut!;
    expect(primary?.wireBytes).toBe(frameBytes);
    const bytes = primary!.bytes;
    expect(bytes.slice(0, gapOffset)).toEqual(large.primaryFrame!.slice(0, gapOffset));
    expect(bytes.slice(gapOffset, gapOffset + gapBytes).every((byte) => byte === 0)).toBe(true);
    expect(bytes.slice(gapOffset + gapBytes)).toEqual(large.primaryFrame!.slice(gapOffset));
    expect(bytes[large.difference!.primaryFrameOffset]).toBe(1);
    expect(tcpdump(save([large]))[0]).toContain("seq 1:60001");
  });

  test("has headers only of redacted records, at their full length", () => {
    const packets = packetsOf(save([redact(tlsHandshake())]));
    expect(packets.map(({ bytes, wireBytes }) => [bytes.length, wireBytes])).toEqual([
      [54, 181],
      [54, 181],
    ]);
    expect(tcpdump(save([redact(tlsHandshake())]))[0]).toContain("seq 2001:2128");
  });

  test("is a good file when no frame was kept", () => {
    expect(packetsOf(save([record()]))).toEqual([]);
    expect(packetsOf(save([]))).toEqual([]);
  });
});

interface Block {
  type: number;
  body: DataView;
  options: Map<number, Uint8Array>;
}

/**
 * Reads blocks by the specification, independent of what wrote them. `fixed`: bytes in front of a packet's
 * data.
 */
function blocksOf(file: Uint8Array): Block[] {
  const blocks: Block[] = [];
  for (let at = 0; at < file.length; ) {
    const view = new DataView(file.buffer, file.byteOffset + at);
    const length = view.getUint32(4, true);
    const type = view.getUint32(0, true);
    expect(length % 4).toBe(0);
    expect(view.getUint32(length - 4, true)).toBe(length);
    const fixed =
      type === 6 ? 20 + ((view.getUint32(20, true) + 3) & ~3) : type === 1 ? 8 : type === 0x0a0d0d0a ? 16 : 0;
    const options = new Map<number, Uint8Array>();
    let option = 8 + fixed;
    for (;;) {
      const code = view.getUint16(option, true);
      const bytes = view.getUint16(option + 2, true);
      if (code === 0) break;
      options.set(code, file.slice(at + option + 4, at + option + 4 + bytes));
      option += 4 + ((bytes + 3) & ~3);
    }
    expect(option + 8).toBe(length);
    blocks.push({ type, body: new DataView(file.buffer, file.byteOffset + at + 8, length - 12), options });
    at += length;
  }
  return blocks;
}

const decode = (bytes: Uint8Array | undefined) => new TextDecoder().decode(bytes);

test("by the specification: section, two named interfaces with nanoseconds, packets with comments", () => {
  const [section, ...rest] = blocksOf(writePcapng([tlsHandshake(), redact(dnsQuery()), largeSegment()]));
  expect(section?.type).toBe(0x0a0d0d0a);
  expect(section?.body.getUint32(0, true)).toBe(0x1a2b3c4d);
  expect(section?.body.getBigInt64(8, true)).toBe(-1n);
  const interfaces = rest.filter(({ type }) => type === 1);
  expect(interfaces.map(({ options }) => decode(options.get(2)))).toEqual(["primary", "secondary"]);
  for (const { body, options } of interfaces) {
    expect(body.getUint16(0, true)).toBe(1);
    expect([...options.get(9)!]).toEqual([9]);
  }
  const packets = rest.filter(({ type }) => type === 6);
  expect(packets.map(({ body }) => body.getUint32(0, true))).toEqual([0, 1, 0, 1, 0, 1]);
  for (const { body } of packets) {
    const timeNs = (BigInt(body.getUint32(4, true)) << 32n) | BigInt(body.getUint32(8, true));
    expect(timeNs).toBe(BigInt(TIME_MS) * 1_000_000n);
  }
  expect(packets.map(({ options }) => decode(options.get(1)))).toEqual([
    "primary, divergence 12 of db1: payload; first differing byte at 65 of the frame",
    "secondary, divergence 12 of db1: payload; first differing byte at 65 of the frame",
    "primary, divergence 12 of db1: payload; first differing byte at 42 of the frame; payload hidden",
    "secondary, divergence 12 of db1: payload; first differing byte at 42 of the frame; payload hidden",
    "primary, divergence 12 of db1: payload; first differing byte at 50054 of the frame; of 60054 bytes, " +
      "1983 from the beginning and those from 50022 to 50086 were kept, those between are zero here",
    "secondary, divergence 12 of db1: payload; first differing byte at 50054 of the frame; of 60054 " +
      "bytes, 1983 from the beginning and those from 50022 to 50086 were kept, those between are zero here",
  ]);
});
