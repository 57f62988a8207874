/**
 * Sending frames out of memory: what arrives, what is refused, and that a refused frame does not take others
 * along.
 */
import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { Arena, ifindex, SystemError } from "../../src/ffi/libc.ts";
import { inNamespace } from "../../src/ffi/netns.ts";
import { PacketSocket } from "../../src/ffi/packet_socket.ts";
import { Tap } from "../../src/ffi/tap.ts";
import { join, segment } from "../bpf/frames.ts";
import { addNamespace, ip, removeNamespaces } from "../bpf/network.ts";
import { until } from "../until.ts";

const PREFIX = "colo-test-socket-";
const NAMESPACE = `${PREFIX}a`;
const EMSGSIZE = 90;
const EINVAL = 22;
const NO_OFFLOAD = new Uint8Array(10);

let tap: Tap;
let arena: Arena;

beforeAll(() => {
  removeNamespaces(PREFIX);
  addNamespace(NAMESPACE);
  tap = inNamespace(NAMESPACE, () => new Tap("tap0"));
  ip(`-n ${NAMESPACE} link set tap0 up`);
  arena = new Arena(1024 * 1024);
});
afterAll(() => {
  tap.close();
  arena.close();
  removeNamespaces(PREFIX);
});
beforeEach(() => {
  arena.reset();
  while (tap.read() !== undefined);
});

const openSocket = () => inNamespace(NAMESPACE, () => new PacketSocket(ifindex("tap0")));

function queue(socket: PacketSocket, ...parts: Uint8Array[]): Uint8Array {
  const message = join(...parts);
  socket.queue(arena.copy(message), message.length);
  return message;
}

test("frames leave in order, across several calls, and only when flushed", async () => {
  const socket = openSocket();
  const sent: Uint8Array[] = [];
  for (let i = 0; i < 63; i++) sent.push(queue(socket, NO_OFFLOAD, segment({ sequence: i, payload: [i] })));
  expect(tap.read()).toBeUndefined();
  for (let i = 63; i < 200; i++) sent.push(queue(socket, NO_OFFLOAD, segment({ sequence: i, payload: [i] })));
  expect(socket.send()).toBe(200);
  expect(socket.send()).toBe(0);
  for (const message of sent) {
    expect(await until("frame", () => tap.read())).toEqual(Uint8Array.from(message));
  }
  expect(tap.read()).toBeUndefined();
  socket.close();
});

test("a frame that is refused is counted with its reason, those around it are sent", async () => {
  const socket = openSocket();
  queue(socket, NO_OFFLOAD, segment({ sequence: 1 }));
  queue(socket, NO_OFFLOAD, segment({ sequence: 2, payload: new Uint8Array(3000) }));
  queue(socket, NO_OFFLOAD, segment({ sequence: 3 }));
  expect(socket.send()).toBe(2);
  expect(socket.failed).toBe(1);
  expect(socket.lastErrno).toBe(EMSGSIZE);

  // A header that promises a segmentation which does not exist.
  queue(socket, Uint8Array.from([1, 77, 54, 0, 100, 0, 34, 0, 16, 0]), segment({ sequence: 4 }));
  queue(socket, NO_OFFLOAD, segment({ sequence: 5 }));
  expect(socket.send()).toBe(1);
  expect(socket.failed).toBe(2);
  expect(socket.lastErrno).toBe(EINVAL);
  for (let i = 0; i < 3; i++) await until("frame", () => tap.read());
  expect(tap.read()).toBeUndefined();
  socket.close();
});

test("a frame may begin with something written for it, amid others that lie there whole", async () => {
  const socket = openSocket();
  const sent: Uint8Array[] = [];
  for (let i = 0; i < 150; i++) {
    const frame = segment({ sequence: i, payload: new Uint8Array(i).fill(i) });
    if (i % 3 === 0) {
      sent.push(queue(socket, NO_OFFLOAD, frame));
      continue;
    }
    // Headers only, or headers and a payload that lies elsewhere.
    const message = join(NO_OFFLOAD, frame);
    const startBytes = i % 3 === 1 ? message.length : message.length - i;
    for (let at = 0; at < startBytes; at++) socket.starts.setUint8(socket.startOffset + at, message[at]);
    const rest = message.subarray(startBytes);
    socket.queueWithStart(startBytes, rest.length > 0 ? arena.copy(rest) : 0, rest.length);
    sent.push(message);
  }
  expect(socket.send()).toBe(150);
  for (const message of sent) {
    expect(await until("frame", () => tap.read())).toEqual(Uint8Array.from(message));
  }
  expect(socket.failed).toBe(0);
  socket.close();
});

test("an interface that is down refuses everything", () => {
  const socket = openSocket();
  ip(`-n ${NAMESPACE} link set tap0 down`);
  try {
    for (let i = 0; i < 70; i++) queue(socket, NO_OFFLOAD, segment());
    expect(socket.send()).toBe(0);
    expect(socket.failed).toBe(70);
  } finally {
    ip(`-n ${NAMESPACE} link set tap0 up`);
    socket.close();
  }
});

test("there has to be an interface", () => {
  expect(ifindex("colo-none")).toBe(0);
  expect(() => new PacketSocket(1_000_000)).toThrow(SystemError);
  expect(() => new PacketSocket(1_000_000)).toThrow(
    "Cannot bind a packet socket to interface 1000000: No such device",
  );
});
