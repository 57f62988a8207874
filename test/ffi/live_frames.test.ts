/**
 * Frames released by runs of live frames: behind a device without offloads there must be, byte for byte, what
 * the packet socket would have sent; and the same rules hold for them. Everything is real: taps, bridge, BPF
 * programs.
 */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import { LIVE_FRAME_BYTES_MAX, LIVE_LIST_MAX, ROLE, VNET, VNET_BYTES } from "../../src/ffi/layout.ts";
import { Arena, ifindex } from "../../src/ffi/libc.ts";
import { LiveFrames } from "../../src/ffi/live_frames.ts";
import { inNamespace } from "../../src/ffi/netns.ts";
import { PacketSocket } from "../../src/ffi/packet_socket.ts";
import type { Tap } from "../../src/ffi/tap.ts";
import { counterDifference, endLease, grantLease } from "../bpf/data_plane_under_test.ts";
import { arp, join, readSegment, segment, udp } from "../bpf/frames.ts";
import { bridgeVm, captured, removeNamespaces, startPlane, stopPlane } from "../bpf/network.ts";

const PREFIX = "colo-test-live-";
const HOST = `${PREFIX}p`;
const NAME = "live-frames";
const WORKERS = 3;
const NO_OFFLOAD = new Uint8Array(VNET_BYTES);
const NEEDS_CHECKSUM = 1;
const TCP_CHECKSUM = 16;
const UDP_CHECKSUM = 6;
/** Ethernet and an IP header without options. */
const IPV4_TRANSPORT = 34;
const IPV6_TRANSPORT = 54;
const VLAN_BYTES = 4;

let vm: Tap;
let neighbour: Tap;
let plane: DataPlane;
let socket: PacketSocket;
let arena: Arena;
let live: LiveFrames;

beforeAll(() => {
  removeNamespaces(PREFIX);
  ({ vm, neighbour } = bridgeVm(HOST, `${PREFIX}s`));
  plane = startPlane({ name: NAME, namespace: HOST, tap: "vm", peerIpv4: 0xc613_0002, workers: WORKERS });
  socket = inNamespace(HOST, () => new PacketSocket(ifindex("inj0")));
  arena = new Arena(4 * 1024 * 1024);
});
afterAll(() => {
  for (const part of [arena, socket, vm, neighbour]) part?.close();
  stopPlane(NAME, plane);
  removeNamespaces(PREFIX);
});
beforeEach(() => {
  plane.state.role = ROLE.PRIMARY;
  grantLease(plane);
  arena.reset();
  live = new LiveFrames(plane.liveFrames);
  while (neighbour.read() !== undefined);
});
afterEach(() => live.close());

function partial(transport: number, checksum: number): Uint8Array {
  const header = new Uint8Array(VNET_BYTES);
  const view = new DataView(header.buffer);
  view.setUint8(VNET.flags, NEEDS_CHECKSUM);
  view.setUint16(VNET.csum_start, transport, true);
  view.setUint16(VNET.csum_offset, checksum, true);
  return header;
}

/** Puts a virtio_net_hdr and a frame into memory and queues them. */
function queue(to: LiveFrames | PacketSocket, ...parts: Uint8Array[]): void {
  const bytes = join(...parts);
  to.queue(arena.copy(bytes), bytes.length);
}

const flush = (frames: LiveFrames = live): number => inNamespace(HOST, () => frames.send());

async function arrived(count: number): Promise<string[]> {
  return (await captured(neighbour, count)).map((frame) => frame.toHex());
}

/** A TCP segment over IPv4 whose checksum is not right. */
function wrong(frame: Uint8Array): Uint8Array {
  frame[IPV4_TRANSPORT + TCP_CHECKSUM] ^= 0x55;
  return frame;
}

/** What a VM may send that is not segmented: virtio_net_hdr and frame. */
const KINDS: [string, Uint8Array, Uint8Array][] = [
  ["TCP", partial(IPV4_TRANSPORT, TCP_CHECKSUM), segment({ partialChecksum: true, payload: [1, 2, 3] })],
  ["TCP, no payload", partial(IPV4_TRANSPORT, TCP_CHECKSUM), segment({ partialChecksum: true })],
  [
    "TCP over IPv6",
    partial(IPV6_TRANSPORT, TCP_CHECKSUM),
    segment({ version: 6, partialChecksum: true, payload: [9, 8, 7, 6, 5] }),
  ],
  [
    "TCP with a VLAN tag",
    partial(IPV4_TRANSPORT + VLAN_BYTES, TCP_CHECKSUM),
    segment({ vlans: [5], partialChecksum: true, payload: [4] }),
  ],
  ["UDP", partial(IPV4_TRANSPORT, UDP_CHECKSUM), udp("guest", [1, 2, 3], { partialChecksum: true })],
  ["a complete checksum", NO_OFFLOAD, segment({ payload: [1, 2, 3, 4, 5] })],
  ["a wrong checksum that claims to be complete", NO_OFFLOAD, wrong(segment({ payload: [6] }))],
  ["ARP", NO_OFFLOAD, arp("guest")],
  // IEEE 802's ethertype for experiments.
  [
    "a short one of a protocol that nobody knows",
    NO_OFFLOAD,
    join(arp("guest").slice(0, 12), [0x88, 0xb5, 1]),
  ],
];

test("arrive as through the packet socket, each kind, in order", async () => {
  for (const to of [live, socket]) for (const [, header, frame] of KINDS) queue(to, header, frame);
  socket.send();
  const bySocket = await arrived(KINDS.length);
  expect(flush()).toBe(KINDS.length);
  expect(await arrived(KINDS.length)).toEqual(bySocket);
  expect({ sent: live.sent, failed: live.failed }).toEqual({ sent: KINDS.length, failed: 0 });
});

test("of every length, and a list as long as can be", async () => {
  const lengths = Array.from({ length: LIVE_LIST_MAX }, (_, i) => i * 5 + (i % 4) + 1);
  lengths[LIVE_LIST_MAX - 1] = 1460;
  for (const to of [live, socket]) {
    for (const [i, length] of lengths.entries()) {
      const payload = Uint8Array.from({ length }, (_, at) => (at * 31 + i) & 255);
      const frame = segment({ sequence: i, partialChecksum: true, payload });
      queue(to, partial(IPV4_TRANSPORT, TCP_CHECKSUM), frame);
    }
  }
  socket.send();
  const bySocket = await arrived(lengths.length);
  expect(flush()).toBe(lengths.length);
  const frames = await arrived(lengths.length);
  expect(frames).toEqual(bySocket);
  expect(frames.every((frame) => readSegment(Uint8Array.fromHex(frame)).checksumRight)).toBe(true);
});

test("a checksum of zero is written the other way", async () => {
  const header = partial(IPV4_TRANSPORT, UDP_CHECKSUM);
  const at = IPV4_TRANSPORT + UDP_CHECKSUM;
  queue(live, header, udp("guest", [0, 0], { partialChecksum: true }));
  flush();
  const [first] = (await arrived(1)).map(Uint8Array.fromHex);
  // Adding the sum's complement makes it zero.
  queue(live, header, udp("guest", first.slice(at, at + 2), { partialChecksum: true }));
  flush();
  const [second] = (await arrived(1)).map(Uint8Array.fromHex);
  expect(second.slice(at, at + 2)).toEqual(Uint8Array.from([0xff, 0xff]));
});

test("memory that an earlier frame has had does not show", async () => {
  const long = segment({ sequence: 1, payload: new Uint8Array(1400).fill(0xee) });
  for (let i = 0; i < LIVE_LIST_MAX; i++)
    queue(live, NO_OFFLOAD, i % 2 === 0 ? long : segment({ sequence: 2 }));
  expect(flush()).toBe(LIVE_LIST_MAX);
  const frames = await arrived(LIVE_LIST_MAX);
  const short = segment({ sequence: 2 }).toHex();
  expect(frames.filter((_, i) => i % 2 === 1).every((frame) => frame === short)).toBe(true);
});

test("each worker has a list of its own", async () => {
  const workers = Array.from({ length: WORKERS }, (_, worker) => new LiveFrames(plane.liveFrames, worker));
  for (const [worker, frames] of workers.entries()) {
    for (let i = 0; i < 2 + worker; i++) queue(frames, NO_OFFLOAD, segment({ sequence: worker }));
  }
  for (const worker of [1, 0, 2]) {
    expect(flush(workers[worker])).toBe(2 + worker);
    const frames = await arrived(2 + worker);
    expect(frames).toEqual(new Array(2 + worker).fill(segment({ sequence: worker }).toHex()));
  }
  for (const frames of workers) frames.close();
  expect(() => new LiveFrames(plane.liveFrames, WORKERS)).toThrow("There are 3 workers");
});

test("what it cannot read or does not understand is counted, and those around it are sent", async () => {
  const frame = segment({ sequence: 7 });
  const message = join(NO_OFFLOAD, frame);
  const address = arena.copy(message);
  queue(live, NO_OFFLOAD, frame);
  live.queue(0x1000, message.length);
  live.queue(address, VNET_BYTES + 13);
  live.queue(address, VNET_BYTES + LIVE_FRAME_BYTES_MAX + 1);
  // Checksums that would lie outside of the frame, or begin there.
  queue(live, partial(IPV4_TRANSPORT, frame.length - IPV4_TRANSPORT - 1), frame);
  queue(live, partial(frame.length, 0), frame);
  queue(live, partial(0xffff, 0xffff), frame);
  queue(live, NO_OFFLOAD, frame);
  expect(flush()).toBe(8);
  expect({ sent: live.sent, failed: live.failed }).toEqual({ sent: 2, failed: 6 });
  expect(await arrived(2)).toEqual([frame.toHex(), frame.toHex()]);
});

test("without a lease, and in a role that releases nothing, nothing leaves", async () => {
  const send = (): void => {
    for (let i = 0; i < 5; i++) queue(live, NO_OFFLOAD, segment());
    expect(flush()).toBe(5);
  };
  const before = plane.counters();
  endLease(plane);
  send();
  grantLease(plane);
  plane.state.role = ROLE.SECONDARY;
  send();
  plane.state.role = ROLE.SOLO;
  send();
  await arrived(5);
  expect(neighbour.read()).toBeUndefined();
  expect(counterDifference(before, plane.counters())).toEqual({
    dropped_lease: 5,
    dropped_blocked: 5,
    passed_released: 5,
  });
});

test("where there is no tap the kernel refuses, and nothing counts as sent", () => {
  const elsewhere = new LiveFrames({ ...plane.liveFrames, tapIfindex: 1_000_000 });
  queue(elsewhere, NO_OFFLOAD, segment());
  expect(flush(elsewhere)).toBe(0);
  expect({ sent: elsewhere.sent, failed: elsewhere.failed }).toEqual({ sent: 0, failed: 0 });
  elsewhere.close();
});
