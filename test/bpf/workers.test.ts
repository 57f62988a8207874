/**
 * Which worker a frame goes to (bpf/worker.h), with both VMs' frames on their real ways: the primary's from
 * its tap, the secondary's through the tunnel.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import { BULK_BYTES, RECORD, ROLE, SLEEP, VNET_BYTES } from "../../src/ffi/layout.ts";
import { closeFd } from "../../src/ffi/libc.ts";
import { inNamespace } from "../../src/ffi/netns.ts";
import { createEventfd, Waiter } from "../../src/ffi/poll.ts";
import { Ring } from "../../src/ffi/ring.ts";
import { StateView } from "../../src/ffi/state_view.ts";
import { Tap } from "../../src/ffi/tap.ts";
import { until } from "../until.ts";
import { grantLease } from "./data_plane_under_test.ts";
import { be16, icmpv6, ipv4Header, ipv6Header, join, option, segment, tcp, udp } from "./frames.ts";
import {
  addNamespace,
  ip,
  linkHosts,
  REPLICATION,
  removeNamespaces,
  startPlane,
  stopPlane,
} from "./network.ts";

/** A doorbell would have been rung by then. */
const QUIET_MS = 50;

const PREFIX = "colo-test-bpf-workers-";
const HOSTS = [`${PREFIX}p`, `${PREFIX}s`] as const;
const WORKERS = 4;
const vnet = new Uint8Array(VNET_BYTES);

let taps: Tap[] = [];
const planes: DataPlane[] = [];
/** Of each worker: where the primary's frames get to, and the secondary's. */
let rings: { primary: Ring; secondary: Ring }[] = [];

beforeAll(() => {
  removeNamespaces(PREFIX);
  for (const host of HOSTS) addNamespace(host);
  linkHosts(...HOSTS);
  taps = HOSTS.map((host) => inNamespace(host, () => new Tap("vm")));
  HOSTS.forEach((namespace, i) => {
    ip(`-n ${namespace} link set vm up`);
    const peerIpv4 = REPLICATION.ipv4[1 - i];
    planes.push(
      startPlane({ name: namespace, namespace, tap: "vm", peerIpv4, workers: WORKERS, ringBytes: 2 ** 18 }),
    );
  });
  const [plane, secondary] = planes;
  plane.state.role = ROLE.PRIMARY;
  grantLease(plane);
  secondary.state.role = ROLE.SECONDARY;
  rings = plane.workers.map(({ primary, secondary }) => ({
    primary: new Ring(primary),
    secondary: new Ring(secondary),
  }));
});
afterAll(() => {
  for (const { primary, secondary } of rings) for (const ring of [primary, secondary]) ring.close();
  planes.forEach((plane, i) => {
    stopPlane(HOSTS[i], plane);
  });
  for (const tap of taps) tap.close();
  removeNamespaces(PREFIX);
});
beforeEach(() => {
  for (const plane of planes) plane.connections.clear();
});

interface Place {
  worker: number;
  hash: number;
}

/** The record that has come into one of the rings, and is taken out of it. */
async function taken(side: "primary" | "secondary"): Promise<Place> {
  return await until(`${side} record`, () => {
    for (const [worker, { [side]: ring }] of rings.entries()) {
      const slot = ring.next();
      if (slot < 0) continue;
      const hash = ring.view.getUint32(ring.offset(slot) + RECORD.hash, true);
      ring.done(slot);
      return { worker, hash };
    }
    return undefined;
  });
}

/** Where a frame of each VM goes. */
async function placesOf(frame: Uint8Array): Promise<[Place, Place]> {
  const places: Place[] = [];
  for (const [i, side] of (["primary", "secondary"] as const).entries()) {
    taps[i].write(frame);
    places.push(await taken(side));
  }
  return places as [Place, Place];
}

/** Where it goes, the same from both VMs. */
async function placeOf(frame: Uint8Array): Promise<Place> {
  const [primary, secondary] = await placesOf(frame);
  expect(secondary).toEqual(primary);
  return primary;
}

const plain = (frame: Uint8Array) => join(vnet, frame);
const partial = (checksumStart: number, gsoType = 0, gsoBytes = 0) => {
  const header = new DataView(new ArrayBuffer(VNET_BYTES));
  header.setUint8(0, 1);
  header.setUint8(1, gsoType);
  header.setUint16(2, checksumStart + 20, true);
  header.setUint16(4, gsoBytes, true);
  header.setUint16(6, checksumStart, true);
  header.setUint16(8, 16, true);
  return new Uint8Array(header.buffer);
};
const bulk = (bytes: number) => new Uint8Array(bytes).map((_, i) => i * 31);
const ethernet = (frame: Uint8Array, ethertype: number) => join(frame.subarray(0, 12), be16(ethertype));

describe.each([
  ["IPv4", 4],
  ["IPv6", 6],
] as const)("TCP over %s", (_what, version) => {
  const transport = version === 4 ? 34 : 54;

  test("stays with one worker whatever its segments look like", async () => {
    const one = await placeOf(plain(segment({ version, flags: tcp.SYN, options: option.mss(1460) })));
    const others = [
      plain(segment({ version, sequence: 99, payload: bulk(1) })),
      plain(segment({ version, sequence: 0xffff_0000, acknowledgment: 7, payload: bulk(1400) })),
      plain(segment({ version, flags: tcp.FIN | tcp.ACK })),
      plain(segment({ version, flags: tcp.RST })),
      plain(segment({ version, options: option.timestamps(1, 2), payload: bulk(77) })),
      plain(segment({ version, vlans: [5], payload: bulk(8) })),
      plain(segment({ version, vlans: [5, 6], payload: bulk(8) })),
      join(partial(transport), segment({ version, payload: bulk(900), partialChecksum: true })),
      join(
        partial(transport, version === 4 ? 1 : 4, 1400),
        segment({ version, payload: bulk(30_000), partialChecksum: true }),
      ),
    ];
    for (const frame of others) expect(await placeOf(frame)).toEqual(one);
  });

  test("connections are shared among all workers", async () => {
    const counts = new Array<number>(WORKERS).fill(0);
    const count = 200;
    for (let i = 0; i < count; i++) {
      const { worker } = await placeOf(plain(segment({ version, clientPort: 30_000 + i, payload: bulk(9) })));
      counts[worker]++;
    }
    expect(counts.every((own) => own > count / WORKERS / 2)).toBe(true);
  });
});

test("IPv4 options do not change where a connection goes", async () => {
  const frame = segment({ payload: bulk(30) });
  const withOptions = join(frame.subarray(0, 34), [1, 1, 1, 1], frame.subarray(34));
  const view = new DataView(withOptions.buffer);
  view.setUint8(14, 0x46);
  view.setUint16(16, view.getUint16(16) + 4);
  expect(await placeOf(plain(withOptions))).toEqual(await placeOf(plain(frame)));
});

test("a datagram, its fragments and ICMP between the same hosts stay together", async () => {
  const datagram = udp("guest", bulk(1200));
  const header = datagram.subarray(0, 14);
  const cut = (from: number, to: number, more: number) =>
    join(
      header,
      ipv4Header("guest", 17, to - from, (more << 13) | (from / 8)),
      datagram.subarray(34 + from, 34 + to),
    );
  const together = [
    datagram,
    cut(0, 800, 1),
    cut(800, 1208, 0),
    join(header, ipv4Header("guest", 1, 16), [8, 0, 0, 0, 0, 1, 0, 1], new Uint8Array(8)),
    join(header, ipv4Header("guest", 1, 16), [3, 3, 0, 0, 0, 0, 0, 0], new Uint8Array(8)),
    join(header, ipv4Header("guest", 132, 16), new Uint8Array(16)),
    // Fragments of a segment: the second has no ports.
    segment({ ipv4Fragment: 0x2000, payload: bulk(8) }),
    join(header, ipv4Header("guest", 6, 16, 10), bulk(16)),
  ];
  const one = await placeOf(plain(together[0]));
  for (const frame of together) expect(await placeOf(plain(frame))).toEqual(one);
  expect(await placeOf(plain(segment({ payload: bulk(8) })))).not.toEqual(one);
});

test("over IPv6 as well", async () => {
  const head = ethernet(segment(), 0x86dd);
  const fragment = (offset: number, more: number) => [17, 0, ...be16((offset << 3) | more), 0, 0, 0, 9];
  const together = [
    join(head, ipv6Header("guest", 17, 16), be16(1), be16(2), be16(16), [0, 0], bulk(8)),
    join(head, ipv6Header("guest", 44, 24), fragment(0, 1), bulk(16)),
    join(head, ipv6Header("guest", 44, 24), fragment(2, 0), bulk(16)),
    icmpv6(128, 64),
    // TCP that is not right behind the header.
    segment({ version: 6, ipv6Extensions: { first: 60, bytes: [6, 0, 1, 4, 0, 0, 0, 0] }, payload: bulk(8) }),
  ];
  const one = await placeOf(plain(together[0]));
  for (const frame of together) expect(await placeOf(plain(frame))).toEqual(one);
});

test.each([
  ["not IP", join(ethernet(segment(), 0x88b5), new Uint8Array(46))],
  ["IPv4 of another version", join(ethernet(segment(), 0x0800), [0x55], new Uint8Array(39))],
])("%s goes to the first worker", async (_what, frame) => {
  expect((await placeOf(plain(frame))).worker).toBe(0);
});

// The tunnel does not take these.
test.each([
  ["IPv4", join(ethernet(segment(), 0x0800), [0x45, 0, 0, 40])],
  ["IPv6", join(ethernet(segment(), 0x86dd), [0x60], new Uint8Array(30))],
])("a primary's %s header that is cut off goes to the first worker", async (_what, frame) => {
  taps[0].write(plain(frame));
  expect((await taken("primary")).worker).toBe(0);
});

test("only the worker whose record it is gets a doorbell", async () => {
  const [plane] = planes;
  const states = plane.workers.map((_, worker) => new StateView(plane.stateFd, worker));
  const wakeFds = plane.workers.map(() => createEventfd());
  const waiters = plane.workers.map(({ doorbellFd }, i) => new Waiter(doorbellFd, wakeFds[i]));
  try {
    const woken = new Set<number>();
    for (let port = 20_000; woken.size < WORKERS; port++) {
      for (const state of states) state.consumerSleeping = SLEEP.ANY;
      taps[0].write(plain(segment({ clientPort: port, payload: bulk(5) })));
      const { worker } = await taken("primary");
      expect(waiters.map((waiter) => waiter.wait(0))).toEqual(states.map((_, i) => i === worker));
      expect(states.map((state) => state.consumerSleeping)).toEqual(
        states.map((_, i) => (i === worker ? SLEEP.NONE : SLEEP.ANY)),
      );
      woken.add(worker);
    }
  } finally {
    for (const state of states) state.consumerSleeping = SLEEP.NONE;
    for (const part of [...states, ...waiters]) part.close();
    for (const fd of wakeFds) closeFd(fd);
  }
});

test(
  "a worker that waits for pairs is not woken by a large frame of one VM while there is nothing of the " +
    "other",
  async () => {
    const [plane] = planes;
    const long = join(
      partial(34, 1, 1000),
      segment({ sequence: 1, partialChecksum: true, payload: bulk(BULK_BYTES) }),
    );
    const short = plain(segment({ sequence: 1, payload: bulk(10) }));
    const { worker } = await placeOf(long);
    const state = new StateView(plane.stateFd, worker);
    const wakeFd = createEventfd();
    const waiter = new Waiter(plane.workers[worker].doorbellFd, wakeFd);
    /** Whether the worker is woken by what a VM sends; its record stays in the ring. */
    const wakes = async (vm: 0 | 1, frame: Uint8Array): Promise<boolean> => {
      const ring = rings[worker][vm === 0 ? "primary" : "secondary"];
      const before = ring.unreadBytes();
      state.consumerSleeping = SLEEP.PAIRED;
      taps[vm].write(frame);
      await until("record", () => ring.unreadBytes() > before);
      // The doorbell is rung after that, or not at all.
      const woken = waiter.wait(QUIET_MS);
      expect(state.consumerSleeping).toBe(woken ? SLEEP.NONE : SLEEP.PAIRED);
      return woken;
    };
    try {
      for (const [vm, side, other] of [
        [0, "primary", "secondary"],
        [1, "secondary", "primary"],
      ] as const) {
        expect(await wakes(vm, long)).toBe(false);
        expect(await wakes(vm, long)).toBe(false);
        expect(await wakes(vm, short)).toBe(true);
        expect(await wakes(vm === 0 ? 1 : 0, long)).toBe(true);
        for (let i = 0; i < 3; i++) await taken(side);
        // Taken, but not given back yet: it is held, and the other VM's is what it waits for.
        const ring = rings[worker][other];
        const held = ring.next();
        expect(await wakes(vm, long)).toBe(true);
        ring.done(held);
        await taken(side);
      }
    } finally {
      state.consumerSleeping = SLEEP.NONE;
      for (const part of [state, waiter]) part.close();
      closeFd(wakeFd);
    }
  },
);
