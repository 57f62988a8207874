/**
 * Segments of one stream that leave as one frame: behind a device that does not segment by itself there must
 * be, byte for byte, what the VM sent. Everything is real: tap, BPF programs, ring, packet socket, bridge;
 * the neighbour's tap takes no offloads, so the kernel segments and fills in checksums before it.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { ReleaseQueue } from "../../src/datapath/release_queue.ts";
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import { RECORD, RECORD_SEND_OFFSET, ROLE, VNET, VNET_BYTES } from "../../src/ffi/layout.ts";
import { ifindex } from "../../src/ffi/libc.ts";
import { LiveFrames } from "../../src/ffi/live_frames.ts";
import { inNamespace } from "../../src/ffi/netns.ts";
import { PacketSocket } from "../../src/ffi/packet_socket.ts";
import { Ring } from "../../src/ffi/ring.ts";
import type { Tap } from "../../src/ffi/tap.ts";
import { grantLease } from "../bpf/data_plane_under_test.ts";
import { join, option, readSegment, type SegmentOptions, segment, tcp, udp } from "../bpf/frames.ts";
import { bridgeVm, captured, ip, removeNamespaces, startPlane, stopPlane } from "../bpf/network.ts";
import { seedOf } from "../variables.ts";

const PREFIX = "colo-test-release-";
const HOST = `${PREFIX}p`;
const NAME = "release-queue";
const IP = 14;

let vm: Tap;
let neighbour: Tap;
let plane: DataPlane;
let socket: PacketSocket;
let live: LiveFrames;
let ring: Ring;

beforeAll(() => {
  removeNamespaces(PREFIX);
  ({ vm, neighbour } = bridgeVm(HOST, `${PREFIX}s`));
  for (const device of ["inj1", "inj0", "vm", "neighbour", "br0"])
    ip(`-n ${HOST} link set ${device} mtu 9000 up`);
  plane = startPlane({ name: NAME, namespace: HOST, tap: "vm", peerIpv4: 0xc613_0002, ringBytes: 4 << 20 });
  plane.state.role = ROLE.PRIMARY;
  socket = inNamespace(HOST, () => new PacketSocket(ifindex("inj0")));
  live = new LiveFrames(plane.liveFrames);
  ring = new Ring(plane.workers[0].primary);
});
afterAll(() => {
  for (const part of [ring, socket, live, vm, neighbour]) part?.close();
  stopPlane(NAME, plane);
  removeNamespaces(PREFIX);
});
beforeEach(() => {
  grantLease(plane);
  while (neighbour.read() !== undefined);
});

/** A virtio_net_hdr for a frame whose TCP checksum is still to be filled in. */
function partial(version: 4 | 6): Uint8Array {
  const header = new Uint8Array(VNET_BYTES);
  const view = new DataView(header.buffer);
  view.setUint8(VNET.flags, 1);
  view.setUint16(VNET.csum_start, IP + (version === 4 ? 20 : 40), true);
  view.setUint16(VNET.csum_offset, 16, true);
  return header;
}

const TCP = 6;

interface Sent extends SegmentOptions {
  identification?: number;
  fragment?: number;
}

/** What a virtio guest writes. */
function guest({ identification = 0, fragment = 0x4000, version = 4, ...options }: Sent): Uint8Array {
  const frame = segment({ version, ipv4Fragment: fragment, partialChecksum: true, ...options });
  if (version === 4) {
    const view = new DataView(frame.buffer);
    view.setUint16(IP + 4, identification & 0xffff);
    view.setUint16(IP + 10, 0);
    let sum = 0;
    for (let at = 0; at < 20; at += 2) sum += view.getUint16(IP + at);
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
    view.setUint16(IP + 10, ~sum & 0xffff);
  }
  return join(partial(version), frame);
}

/**
 * Frames by connection (protocol and ports), each in order. A sum of zero is written 0xffff by
 * skb_checksum_help(), 0 by TCP's segmentation; both say the same (RFC 1624), and network cards differ
 * likewise.
 */
function byConnection(frames: readonly Uint8Array[]): Map<string, string[]> {
  const connections = new Map<string, string[]>();
  for (const frame of frames) {
    const ports = IP + (frame[12] === 0x08 ? 20 : 40);
    const protocol = frame[ports - (frame[12] === 0x08 ? 11 : 34)];
    if (protocol === TCP && frame[ports + 16] === 0xff && frame[ports + 17] === 0xff) {
      frame.fill(0, ports + 16, ports + 18);
    }
    const key = `${protocol} ${frame.slice(ports, ports + 4).toHex()}`;
    const known = connections.get(key);
    if (known === undefined) connections.set(key, [frame.toHex()]);
    else known.push(frame.toHex());
  }
  return connections;
}

/** Of everything that the VM has sent. */
function heldSlots(): number[] {
  const slots: number[] = [];
  for (let slot = ring.next(); slot >= 0; slot = ring.next()) slots.push(slot);
  return slots;
}

/** What leaves in a run is put at the tap of the namespace that the thread is in. */
function releaseAll(queue: ReleaseQueue, slots: readonly number[]): void {
  inNamespace(HOST, () => {
    for (const slot of slots) queue.enqueue(slot);
    queue.flush();
  });
}

/**
 * The VM sends; what leaves one by one has to be what leaves by the queue. Returns how many frames the kernel
 * was given.
 */
async function released(sent: readonly Uint8Array[]): Promise<number> {
  const slots: number[] = [];
  for (const frame of sent) {
    vm.write(frame);
    slots.push(ring.next());
  }
  expect(slots).not.toContain(-1);
  for (const slot of slots) {
    const at = ring.offset(slot);
    const bytes = VNET_BYTES + ring.view.getUint32(at + RECORD.frame_bytes, true);
    socket.queue(ring.address + at + RECORD_SEND_OFFSET, bytes);
  }
  socket.send();
  const alone = await captured(neighbour, sent.length);
  expect(alone).toHaveLength(sent.length);

  const queue = new ReleaseQueue(ring, socket, live);
  const before = plane.counters().passed_released;
  releaseAll(queue, slots);
  const together = await captured(neighbour, sent.length);
  expect(byConnection(together)).toEqual(byConnection(alone));
  const messages = plane.counters().passed_released - before;
  expect(messages + queue.joinedFrames).toBe(sent.length);
  expect(ring.pending()).toBe(0);
  return messages;
}

const bytes = (length: number, from = 1): number[] => Array.from({ length }, (_, i) => (from + i * 7) & 255);

/** Segments of a stream; `change` may say something else of each. */
function stream(count: number, size: number, change: (i: number) => Sent = () => ({})): Uint8Array[] {
  return Array.from({ length: count }, (_, i) =>
    guest({
      sequence: (0xffff_f000 + i * size) >>> 0,
      acknowledgment: 77,
      identification: 0xfffd + i,
      options: [...option.nop, ...option.nop, ...option.timestamps(5, 6)],
      payload: bytes(size, i),
      ...change(i),
    }),
  );
}

describe("leave as one frame", () => {
  test("neighbours of a stream; numbers and identification go round", async () => {
    expect(await released(stream(40, 1448))).toBe(1);
  });
  test("over IPv6", async () => {
    expect(await released(stream(40, 1428, () => ({ version: 6 })))).toBe(1);
  });
  test("with a last one that is shorter and says PSH and FIN", async () => {
    const last = { payload: bytes(101), flags: tcp.ACK | tcp.PSH | tcp.FIN };
    expect(await released(stream(5, 1000, (i) => (i === 4 ? last : {})))).toBe(1);
  });
  test("as many as fit into an IP packet, then the next ones", async () => {
    expect(await released(stream(100, 1448))).toBe(3);
    expect(await released(stream(130, 48))).toBe(3);
  });
  test("streams that take turns", async () => {
    const streams = [1, 2, 3].map((n) => stream(30, 500, () => ({ clientPort: 40_000 + n })));
    const turns = streams[0].flatMap((_, i) => streams.map((frames) => frames[i]));
    expect(await released(turns)).toBe(3);
  });
  test("another connection's acknowledgements and datagrams in between do not matter", async () => {
    const frames = stream(6, 700);
    const other = guest({ clientPort: 41_000, identification: 9, sequence: 5 });
    expect(
      await released(frames.flatMap((f) => [f, other, join(new Uint8Array(10), udp("guest", [1]))])),
    ).toBe(13);
  });
});

describe("leave by themselves", () => {
  const cases: [string, (i: number) => Sent][] = [
    ["PSH in the middle", (i) => (i === 1 ? { flags: tcp.ACK | tcp.PSH } : {})],
    ["another window", (i) => (i >= 2 ? { window: 99 } : {})],
    ["another acknowledgement", (i) => (i >= 2 ? { acknowledgment: 78 } : {})],
    ["another timestamp", (i) => (i >= 2 ? { options: [1, 1, ...option.timestamps(6, 6)] } : {})],
    ["an identification that does not count up", (i) => (i >= 2 ? { identification: 9 + i } : {})],
    ["another DF", (i) => (i >= 2 ? { fragment: 0 } : {})],
    ["a shorter one in the middle", (i) => (i === 1 ? { payload: bytes(500) } : {})],
    ["a longer one", (i) => (i >= 2 ? { payload: bytes(1001) } : {})],
    ["a gap", (i) => (i >= 2 ? { sequence: 9 + i * 1000 } : {})],
  ];
  for (const [name, change] of cases) {
    test(`around ${name}`, async () => {
      const messages = await released(stream(4, 1000, change));
      expect(messages).toBeGreaterThan(1);
      expect(messages).toBeLessThan(5);
    });
  }
  test("each with the same identification, or a CWR, or a checksum of its own, or sent again", async () => {
    expect(await released(stream(4, 1000, () => ({ identification: 0 })))).toBe(4);
    expect(await released(stream(4, 1000, () => ({ flags: tcp.ACK | 0x80 })))).toBe(4);
    expect(await released(stream(4, 1000, () => ({ sequence: 1 })))).toBe(4);
    const complete = stream(4, 1000, () => ({ partialChecksum: false }));
    for (const frame of complete) frame.fill(0, 0, VNET_BYTES);
    expect(await released(complete)).toBe(4);
  });
  test("one whose identification fits but whose IP checksum is wrong", async () => {
    const frames = stream(3, 1000);
    for (const frame of frames) frame[VNET_BYTES + IP + 10] ^= 1;
    expect(await released(frames)).toBe(3);
  });
  test("a stream's acknowledgement is not overtaken", async () => {
    const frames = stream(4, 1000);
    frames.splice(2, 0, guest({ sequence: 3, acknowledgment: 500, identification: 1 }));
    const messages = await released(frames);
    expect(messages).toBe(3);
  });
});

describe("leave in a run", () => {
  /** Frames of which none can join another. */
  const single = (count: number): Uint8Array[] =>
    stream(count, 200, () => ({ identification: 0, sequence: 1 }));
  const large = (): Uint8Array[] => stream(40, 1448, () => ({ clientPort: 45_000 }));

  async function inRuns(frames: readonly Uint8Array[]): Promise<number> {
    const before = live.sent;
    await released(frames);
    return live.sent - before;
  }

  test("only if there are enough in a row", async () => {
    expect(await inRuns(single(31))).toBe(0);
    expect(await inRuns(single(32))).toBe(32);
  });
  test("more than fit into one", async () => {
    expect(await inRuns(single(700))).toBe(700);
  });
  test("not what is longer than a run takes, or joined; nothing is overtaken by that", async () => {
    expect(await inRuns([...single(40), ...large(), ...single(40)])).toBe(80);
    expect(await inRuns(stream(40, 1500, () => ({ identification: 0, sequence: 1 })))).toBe(0);
  });
  test("not what the kernel has to segment", async () => {
    for (const frame of single(40)) {
      // TCP over IPv4 in pieces of 100 bytes, behind a header of 66
      frame.set([1, 1, 66, 0, 100, 0], VNET.flags);
      vm.write(frame);
    }
    const slots = heldSlots();
    const before = live.sent;
    releaseAll(new ReleaseQueue(ring, socket, live), slots);
    expect(await captured(neighbour, 80)).toHaveLength(80);
    expect(live.sent).toBe(before);
  });
  test("of one connection, frames in a run and joined ones keep their order", async () => {
    const frames = stream(120, 1000, (i) => (i < 40 || i >= 80 ? { flags: tcp.ACK | tcp.PSH } : {}));
    expect(await inRuns(frames)).toBeGreaterThanOrEqual(78);
  });
});

test("what a run leaves over goes through the socket, in order", async () => {
  const tired = new LiveFrames({ ...plane.liveFrames, tapIfindex: 1_000_000 });
  for (const frame of stream(100, 300, () => ({ flags: tcp.ACK | tcp.PSH }))) vm.write(frame);
  const slots = heldSlots();
  releaseAll(new ReleaseQueue(ring, socket, tired), slots);
  const numbers = (await captured(neighbour, 100)).map((frame) => readSegment(frame).sequence);
  expect(numbers).toEqual(numbers.map((_, i) => (0xffff_f000 + i * 300) >>> 0));
  expect(tired.sent).toBe(0);
  tired.close();
});

test("random streams, mixed", async () => {
  const seed = seedOf("COLO_RELEASE_SEED");
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return Math.floor(((state >>> 0) / 2 ** 32) * below);
  };
  const rarely = () => random(12) === 0;
  let messages = 0;
  let count = 0;
  for (let round = 0; round < 15; round++) {
    const connections = Array.from({ length: 1 + random(8) }, (_, i) => ({
      version: (random(3) === 0 ? 6 : 4) as 4 | 6,
      clientPort: 42_000 + i,
      sequence: random(2 ** 32),
      identification: random(2 ** 16),
      size: [48, 100, 536, 1000, 1400][random(5)],
      value: 1,
      acknowledgment: 1,
    }));
    const frames: Uint8Array[] = [];
    while (frames.length < 300) {
      const one = connections[random(connections.length)];
      const { version, clientPort, sequence, identification, size, value, acknowledgment } = one;
      const length = rarely() ? random(size + 1) : rarely() ? size + 8 : size;
      let flags: number = tcp.ACK;
      if (rarely()) flags |= [tcp.PSH, tcp.FIN, 0x40, 0x80][random(4)];
      const options = [1, 1, ...option.timestamps(value, 1)];
      const fragment = rarely() ? 0 : 0x4000;
      const payload = bytes(length, random(256));
      frames.push(
        guest({
          version,
          clientPort,
          sequence,
          identification,
          acknowledgment,
          flags,
          options,
          fragment,
          payload,
        }),
      );
      one.sequence = (sequence + (rarely() ? random(3000) : length)) >>> 0;
      one.identification += rarely() ? random(3) : 1;
      if (rarely()) one.value++;
      if (rarely()) one.acknowledgment++;
    }
    count += frames.length;
    messages += await released(frames).catch((error) => {
      throw new Error(`Run it again with COLO_RELEASE_SEED=${seed}: ${error}`, { cause: error });
    });
  }
  // It has to have met what it is for.
  expect(messages).toBeLessThan(count);
}, 60_000);

test("what leaves has right checksums", async () => {
  for (const frame of stream(10, 1448)) vm.write(frame);
  const queue = new ReleaseQueue(ring, socket, live);
  const slots = heldSlots();
  releaseAll(queue, slots);
  const frames = await captured(neighbour, 10);
  expect(queue.joinedFrames).toBe(9);
  for (const [i, frame] of frames.entries()) {
    expect(readSegment(frame)).toMatchObject({
      sequence: (0xffff_f000 + i * 1448) >>> 0,
      checksumRight: true,
    });
  }
});
