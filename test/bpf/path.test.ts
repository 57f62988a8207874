/**
 * The packet's way with real devices: taps, bridges, VXLAN between two hosts. The test plays both VMs and
 * everybody else on the bridges; each of them is the far end of a tap.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import {
  RECORD,
  RECORD_HEADER_BYTES,
  RECORD_SEND_OFFSET,
  ROLE,
  SOURCE,
  VNET,
  VNET_BYTES,
} from "../../src/ffi/layout.ts";
import { Arena, bootTimeNs, ifindex } from "../../src/ffi/libc.ts";
import { inNamespace } from "../../src/ffi/netns.ts";
import { PacketSocket } from "../../src/ffi/packet_socket.ts";
import { Ring } from "../../src/ffi/ring.ts";
import { Tap } from "../../src/ffi/tap.ts";
import { until } from "../until.ts";
import { counterDifference, endLease, grantLease, MARK, SETTINGS } from "./data_plane_under_test.ts";
import { arp, be16, be32, join, readSegment, segment, tcp, udp } from "./frames.ts";
import {
  addNamespace,
  ip,
  linkHosts,
  REPLICATION,
  removeNamespaces,
  startPlane,
  stopPlane,
} from "./network.ts";

const PREFIX = "colo-test-path-";
const HOSTS = [`${PREFIX}p`, `${PREFIX}s`] as const;

class Host {
  readonly vm: Tap;
  /** Somebody else on the VM's bridge. */
  readonly neighbour: Tap;
  readonly plane: DataPlane;
  readonly inject: PacketSocket;
  readonly replay: PacketSocket;

  constructor(index: 0 | 1) {
    const namespace = HOSTS[index];
    [this.vm, this.neighbour] = inNamespace(namespace, () => [new Tap("vm"), new Tap("neighbour")]);
    ip(`-n ${namespace} link add br0 type bridge mcast_snooping 0`);
    for (const port of ["vm", "neighbour"]) ip(`-n ${namespace} link set ${port} master br0 up`);
    ip(`-n ${namespace} link set br0 up`);
    this.plane = startPlane({
      name: `path-${index}`,
      namespace,
      tap: "vm",
      peerIpv4: REPLICATION.ipv4[1 - index],
      ringBytes: 512 * 1024,
    });
    this.inject = inNamespace(namespace, () => new PacketSocket(ifindex("inj0")));
    this.replay = inNamespace(namespace, () => new PacketSocket(ifindex("vm"), { mark: MARK.replay }));
  }

  close(): void {
    for (const part of [this.inject, this.replay, this.vm, this.neighbour]) part.close();
  }
}

let primary: Host;
let secondary: Host;

beforeAll(() => {
  removeNamespaces(PREFIX);
  for (const host of HOSTS) addNamespace(host);
  linkHosts(...HOSTS);
  primary = new Host(0);
  secondary = new Host(1);
});
afterAll(() => {
  for (const [i, host] of [primary, secondary].entries()) {
    host?.close();
    stopPlane(`path-${i}`, host?.plane);
  }
  removeNamespaces(PREFIX);
});
beforeEach(async () => {
  primary.plane.state.role = ROLE.PRIMARY;
  secondary.plane.state.role = ROLE.SECONDARY;
  primary.plane.state.divertInput = false;
  grantLease(primary.plane);
  endLease(secondary.plane);
  for (const host of [primary, secondary]) {
    host.plane.connections.clear();
    for (const tap of [host.vm, host.neighbour]) while (tap.read() !== undefined);
    for (const ring of ["primary", "secondary", "input"] as const) emptyRing(host, ring);
  }
});

function openRing(host: Host, which: "primary" | "secondary" | "input"): Ring {
  return new Ring(which === "input" ? host.plane.input : host.plane.workers[0][which]);
}

function emptyRing(host: Host, which: "primary" | "secondary" | "input"): void {
  const ring = openRing(host, which);
  for (let slot = ring.next(); slot >= 0; slot = ring.next()) ring.done(slot);
  ring.close();
}

interface Offload {
  flags?: number;
  gsoType?: number;
  headerBytes?: number;
  gsoBytes?: number;
  checksumStart?: number;
  checksumOffset?: number;
}

function vnet(o: Offload = {}): Uint8Array {
  const header = new DataView(new ArrayBuffer(VNET_BYTES));
  header.setUint8(VNET.flags, o.flags ?? 0);
  header.setUint8(VNET.gso_type, o.gsoType ?? 0);
  header.setUint16(VNET.hdr_len, o.headerBytes ?? 0, true);
  header.setUint16(VNET.gso_size, o.gsoBytes ?? 0, true);
  header.setUint16(VNET.csum_start, o.checksumStart ?? 0, true);
  header.setUint16(VNET.csum_offset, o.checksumOffset ?? 0, true);
  return new Uint8Array(header.buffer);
}

const DATA_VALID = 2;

/**
 * Without what each reader makes up anew (include/linux/virtio_net.h): hdr_len is a hint, and a checksum that
 * came whole through the tunnel counts as verified.
 */
function essence(sent: Uint8Array): Uint8Array<ArrayBuffer> {
  const copy = Uint8Array.from(sent);
  copy[VNET.flags] &= ~DATA_VALID;
  copy.fill(0, VNET.hdr_len, VNET.hdr_len + 2);
  return copy;
}

const bulk = (bytes: number) => new Uint8Array(bytes).map((_, i) => i * 31 + (i >> 8));
const PARTIAL = { flags: 1, checksumOffset: 16 };

/** What a virtio guest sends: header and frame. */
const FRAMES: [string, Uint8Array][] = [
  ["a TCP segment", join(vnet(), segment({ payload: [1, 2, 3] }))],
  ["UDP", join(vnet(), udp("guest", bulk(500)))],
  ["a full frame", join(vnet(), segment({ payload: bulk(1460) }))],
  [
    "a partial checksum",
    join(
      vnet({ ...PARTIAL, checksumStart: 34, headerBytes: 54 }),
      segment({ payload: bulk(999), partialChecksum: true }),
    ),
  ],
  [
    "a partial checksum over IPv6",
    join(
      vnet({ ...PARTIAL, checksumStart: 54, headerBytes: 74 }),
      segment({ version: 6, payload: bulk(999), partialChecksum: true }),
    ),
  ],
  [
    "TCP segmentation",
    join(
      vnet({ ...PARTIAL, checksumStart: 34, gsoType: 1, gsoBytes: 1448, headerBytes: 66 }),
      segment({ payload: bulk(60_000), options: new Array(12).fill(1), partialChecksum: true }),
    ),
  ],
  [
    "TCP segmentation with ECN",
    join(
      vnet({ ...PARTIAL, checksumStart: 34, gsoType: 1 | 0x80, gsoBytes: 1460, headerBytes: 54 }),
      segment({ payload: bulk(8192), flags: tcp.ACK | 0x80, partialChecksum: true }),
    ),
  ],
  [
    "TCP segmentation over IPv6",
    join(
      vnet({ ...PARTIAL, checksumStart: 54, gsoType: 4, gsoBytes: 1440, headerBytes: 74 }),
      segment({ version: 6, payload: bulk(40_000), partialChecksum: true }),
    ),
  ],
  [
    "UDP segmentation",
    join(
      vnet({ flags: 1, checksumOffset: 6, checksumStart: 34, gsoType: 5, gsoBytes: 1000, headerBytes: 42 }),
      udp("guest", bulk(30_000), { partialChecksum: true }),
    ),
  ],
  ["a VLAN tag", join(vnet(), segment({ vlans: [5], payload: bulk(100) }))],
  [
    "a VLAN tag and a partial checksum",
    join(
      vnet({ ...PARTIAL, checksumStart: 38, headerBytes: 58 }),
      segment({ vlans: [0x6005], payload: bulk(300), partialChecksum: true }),
    ),
  ],
  [
    "a VLAN tag and TCP segmentation",
    join(
      vnet({ ...PARTIAL, checksumStart: 38, gsoType: 1, gsoBytes: 1460, headerBytes: 58 }),
      segment({ vlans: [5], payload: bulk(20_000), partialChecksum: true }),
    ),
  ],
  ["two VLAN tags", join(vnet(), segment({ vlans: [5, 6], payload: bulk(100) }))],
];

/** Sends a record from where it lies in the ring. */
function sendRecord(socket: PacketSocket, ring: Ring, slot: number): number {
  const at = ring.offset(slot);
  socket.queue(
    ring.address + at + RECORD_SEND_OFFSET,
    VNET_BYTES + ring.view.getUint32(at + RECORD.frame_bytes, true),
  );
  return socket.send();
}

describe("hold and release", () => {
  test.each(FRAMES)(
    "%s is held, and comes out of the tap as it went in when released",
    async (_what, sent) => {
      const ring = openRing(primary, "primary");
      const before = primary.plane.counters();
      primary.vm.write(sent);
      const slot = await until("record", () => {
        const next = ring.next();
        return next >= 0 && { next };
      });
      const at = ring.offset(slot.next);
      expect(ring.view.getUint32(at + RECORD.frame_bytes, true)).toBe(sent.length - VNET_BYTES);
      expect(ring.view.getUint32(at + RECORD.source, true)).toBe(SOURCE.PRIMARY);
      const record = ring.bytes.slice(at + RECORD.vnet, at + RECORD.vnet + sent.length);
      const segmented = sent[VNET.gso_type] !== 0;
      if (segmented) expect(record).toEqual(Uint8Array.from(sent));
      else expect(essence(record)).toEqual(essence(sent));
      expect(primary.neighbour.read()).toBeUndefined();

      expect(sendRecord(primary.inject, ring, slot.next)).toBe(1);
      ring.done(slot.next);
      const arrived = await until("released frame", () => primary.neighbour.read());
      expect(essence(arrived)).toEqual(essence(sent));
      expect(primary.neighbour.read()).toBeUndefined();
      expect(ring.next()).toBe(-1);
      expect(counterDifference(before, primary.plane.counters())).toEqual({ held: 1, passed_released: 1 });
      ring.close();
    },
  );

  test("kernels before 6.15 hold a large frame byte for byte too", () => {
    const plane = startPlane({
      name: "path-chunks",
      namespace: HOSTS[0],
      tap: "vm",
      peerIpv4: REPLICATION.ipv4[1],
      copyInChunks: true,
    });
    try {
      plane.state.role = ROLE.PRIMARY;
      const ring = new Ring(plane.workers[0].primary);
      for (const [, sent] of FRAMES) {
        primary.vm.write(sent);
        const slot = ring.next();
        const at = ring.offset(slot) + RECORD_HEADER_BYTES;
        expect(ring.bytes.slice(at, at + sent.length - VNET_BYTES)).toEqual(sent.slice(VNET_BYTES));
        ring.done(slot);
      }
      ring.close();
    } finally {
      stopPlane("path-chunks", plane);
      inNamespace(HOSTS[0], () =>
        primary.plane.attach({
          tapIfindex: ifindex("vm"),
          tunnelIfindex: ifindex("vx"),
          injectIfindex: ifindex("inj0"),
        }),
      );
    }
  });

  test("frames come out in the order of their release, several calls' worth of them", async () => {
    const ring = openRing(primary, "primary");
    for (let i = 0; i < 150; i++) primary.vm.write(join(vnet(), segment({ sequence: i, payload: [i] })));
    for (let slot = ring.next(); slot >= 0; slot = ring.next()) {
      const at = ring.offset(slot);
      primary.inject.queue(
        ring.address + at + RECORD_SEND_OFFSET,
        VNET_BYTES + ring.view.getUint32(at + RECORD.frame_bytes, true),
      );
    }
    expect(primary.inject.send()).toBe(150);
    for (let i = 0; i < 150; i++) {
      const arrived = await until("released frame", () => primary.neighbour.read());
      expect(readSegment(arrived.subarray(VNET_BYTES)).sequence).toBe(i);
    }
    ring.close();
  });

  test("nothing leaves once the lease has run out", async () => {
    const ring = openRing(primary, "primary");
    primary.vm.write(FRAMES[0][1]);
    const slot = ring.next();
    endLease(primary.plane);
    const before = primary.plane.counters();
    sendRecord(primary.inject, ring, slot);
    primary.vm.write(join(vnet(), arp("guest")));
    await until("drop", () => primary.plane.counters().dropped_lease === before.dropped_lease + 2);
    expect(primary.neighbour.read()).toBeUndefined();
    ring.close();
  });

  test("ARP of the primary leaves at once", async () => {
    primary.vm.write(join(vnet(), arp("guest")));
    const arrived = await until("ARP", () => primary.neighbour.read());
    expect(arrived).toEqual(join(vnet(), arp("guest")));
  });
});

describe("a full ring", () => {
  test("frames are dropped and counted, and there is room again once the oldest record is done", () => {
    const ring = openRing(primary, "primary");
    const before = primary.plane.counters();
    const frame = join(vnet(), segment({ payload: bulk(1460) }));
    for (let i = 0; i < 400; i++) primary.vm.write(frame);
    const added = counterDifference(before, primary.plane.counters());
    const held = added.held!;
    expect(added).toEqual({ held, hold_ring_full: 400 - held });
    expect(held).toBe(Math.floor(ring.bytes.length / 2 / (8 + 64 + 1520)));

    const slots: number[] = [];
    for (let slot = ring.next(); slot >= 0; slot = ring.next()) slots.push(slot);
    expect(slots).toHaveLength(held);
    // All but the oldest: the kernel gets nothing back yet.
    for (const slot of slots.slice(1)) ring.done(slot);
    primary.vm.write(frame);
    expect(primary.plane.counters().hold_ring_full).toBe(before.hold_ring_full + 400 - held + 1);
    ring.done(slots[0]);
    primary.vm.write(frame);
    expect(primary.plane.counters().held).toBe(before.held + held + 1);
    expect(ring.next()).toBeGreaterThanOrEqual(0);
    ring.close();
  });
});

/** The same frames on their way to the VM. */
const INPUT: [string, Uint8Array][] = FRAMES.map(([what, sent]) => {
  const frame = Uint8Array.from(sent);
  const at = VNET_BYTES;
  frame.copyWithin(at + 6, at, at + 6);
  frame.set(sent.subarray(at + 6, at + 12), at);
  return [what, frame];
});

describe("mirror and deliver", () => {
  test.each(INPUT)("%s reaches both VMs", async (_what, sent) => {
    const before = [primary.plane.counters(), secondary.plane.counters()];
    primary.neighbour.write(sent);
    const first = await until("frame at the primary", () => primary.vm.read());
    const second = await until("frame at the secondary", () => secondary.vm.read());
    expect(essence(first)).toEqual(essence(sent));
    expect(essence(second)).toEqual(essence(sent));
    expect(counterDifference(before[0], primary.plane.counters())).toEqual({ mirrored: 1 });
    expect(counterDifference(before[1], secondary.plane.counters())).toEqual({ delivered: 1 });
    expect(secondary.neighbour.read()).toBeUndefined();
  });

  test("the secondary does not hear its own bridge", async () => {
    const before = secondary.plane.counters();
    secondary.neighbour.write(INPUT[0][1]);
    await until("drop", () => secondary.plane.counters().foreign_dropped === before.foreign_dropped + 1);
    expect(secondary.vm.read()).toBeUndefined();
  });

  test("a clone that cannot be sent is counted, and the primary gets its frame", async () => {
    ip(`-n ${HOSTS[0]} link set vx down`);
    try {
      const before = primary.plane.counters();
      primary.neighbour.write(INPUT[0][1]);
      await until("frame at the primary", () => primary.vm.read());
      expect(counterDifference(before, primary.plane.counters())).toEqual({ mirror_failed: 1 });
    } finally {
      ip(`-n ${HOSTS[0]} link set vx up`);
    }
  });

  test("a secondary's numbers are put right on its own host, with a whole or partial checksum", async () => {
    secondary.vm.write(join(vnet(), segment({ sequence: 1_000, flags: tcp.SYN | tcp.ACK })));
    const whole = segment({ from: "client", acknowledgment: 5_001, payload: bulk(10) });
    const partial = segment({
      from: "client",
      acknowledgment: 5_001,
      payload: bulk(9_000),
      partialChecksum: true,
    });
    const offload = vnet({ ...PARTIAL, checksumStart: 34, gsoType: 1, gsoBytes: 1460, headerBytes: 54 });
    for (const [sent, right] of [
      [
        join(vnet(), whole),
        join(vnet(), segment({ from: "client", acknowledgment: 1_001, payload: bulk(10) })),
      ],
      [
        join(offload, partial),
        join(
          offload,
          segment({ from: "client", acknowledgment: 1_001, payload: bulk(9_000), partialChecksum: true }),
        ),
      ],
    ]) {
      primary.neighbour.write(sent);
      const first = await until("frame at the primary", () => primary.vm.read());
      const second = await until("frame at the secondary", () => secondary.vm.read());
      expect(essence(first)).toEqual(essence(sent));
      expect(essence(second)).toEqual(essence(right));
    }
  });

  describe("only the peer's tunnel frames for this VM count", () => {
    const [PRIMARY_MAC, SECONDARY_MAC] = REPLICATION.macs.map((mac) =>
      mac.split(":").map((part) => Number.parseInt(part, 16)),
    );

    function vxlan(source: number, vni: number, inner: Uint8Array): Uint8Array {
      const udpBytes = 16 + inner.length;
      const ipHeader = [
        0x45,
        0,
        ...be16(20 + udpBytes),
        0,
        0,
        0,
        0,
        64,
        17,
        0,
        0,
        ...be32(source),
        ...be32(REPLICATION.ipv4[1]),
      ];
      let sum = 0;
      for (let i = 0; i < 20; i += 2) sum += (ipHeader[i] << 8) | ipHeader[i + 1];
      ipHeader.splice(10, 2, ...be16(0xffff & ~((sum & 0xffff) + (sum >>> 16))));
      const header = [...be16(50_000), ...be16(4789), ...be16(udpBytes), 0, 0, 8, 0, 0, 0, ...be32(vni << 8)];
      return join(vnet(), SECONDARY_MAC, PRIMARY_MAC, [8, 0], ipHeader, header, inner);
    }

    const VNI = SETTINGS.tunnelId << 16;
    const CASES: [string, number, number, "delivered" | "deliver_rejected"][] = [
      ["the peer's", REPLICATION.ipv4[0], VNI, "delivered"],
      ["the peer's in whatever epoch", REPLICATION.ipv4[0], VNI | 0xffff, "delivered"],
      ["another VM's", REPLICATION.ipv4[0], VNI + 0x10000, "deliver_rejected"],
      ["another host's", 0xc613_0003, VNI, "deliver_rejected"],
    ];

    test.each(CASES)("%s", async (_whose, source, vni, counter) => {
      const socket = inNamespace(HOSTS[0], () => new PacketSocket(ifindex("rep")));
      const arena = new Arena(4096);
      const sent = vxlan(source, vni, INPUT[0][1].subarray(VNET_BYTES));
      const before = secondary.plane.counters();
      socket.queue(arena.copy(sent), sent.length);
      expect(socket.send()).toBe(1);
      await until("counter", () => secondary.plane.counters()[counter] > before[counter]);
      expect(counterDifference(before, secondary.plane.counters())).toEqual({ [counter]: 1 });
      expect(secondary.vm.read() !== undefined).toBe(counter === "delivered");
      socket.close();
      arena.close();
    });
  });
});

describe("forward and collect", () => {
  test.each(FRAMES)("%s reaches the primary's comparer, and nobody else", async (_what, sent) => {
    secondary.plane.state.epoch = 0x5_0042;
    const ring = openRing(primary, "secondary");
    const before = [primary.plane.counters(), secondary.plane.counters()];
    secondary.vm.write(sent);
    const { slot } = await until("record", () => {
      const next = ring.next();
      return next >= 0 && { slot: next };
    });
    const at = ring.offset(slot);
    expect(ring.view.getUint32(at + RECORD.epoch, true)).toBe(0x42);
    expect(ring.view.getUint32(at + RECORD.source, true)).toBe(SOURCE.SECONDARY);
    expect(ring.view.getUint32(at + RECORD.frame_bytes, true)).toBe(sent.length - VNET_BYTES);
    const start = at + RECORD_HEADER_BYTES;
    expect(ring.bytes.slice(start, start + sent.length - VNET_BYTES)).toEqual(sent.slice(VNET_BYTES));
    expect(counterDifference(before[0], primary.plane.counters())).toEqual({ collected: 1 });
    expect(counterDifference(before[1], secondary.plane.counters())).toEqual({ forwarded: 1 });
    for (const tap of [primary.neighbour, primary.vm, secondary.neighbour])
      expect(tap.read()).toBeUndefined();
    ring.done(slot);
    ring.close();
  });

  test("the secondary's TCP arrives in the primary's numbers", async () => {
    secondary.vm.write(join(vnet(), segment({ sequence: 1_000, flags: tcp.SYN | tcp.ACK })));
    primary.neighbour.write(join(vnet(), segment({ from: "client", acknowledgment: 5_001 })));
    await until("frame at the secondary", () => secondary.vm.read());
    secondary.vm.write(join(vnet(), segment({ sequence: 1_001, payload: bulk(700) })));
    const ring = openRing(primary, "secondary");
    await until("two records", () => ring.unreadBytes() > 700 + 2 * 72);
    ring.next();
    const at = ring.offset(ring.next());
    const start = at + RECORD_HEADER_BYTES;
    const frame = ring.bytes.slice(start, start + ring.view.getUint32(at + RECORD.frame_bytes, true));
    expect(frame).toEqual(segment({ sequence: 5_001, payload: bulk(700) }));
    ring.close();
  });
});

describe("divert and replay", () => {
  test("input waits while it is diverted, and reaches both VMs in order when it is put back", async () => {
    const ring = openRing(primary, "input");
    primary.plane.state.divertInput = true;
    for (const [, sent] of INPUT) primary.neighbour.write(sent);
    expect(primary.vm.read()).toBeUndefined();
    expect(secondary.vm.read()).toBeUndefined();

    const before = primary.plane.counters();
    for (let slot = ring.next(); slot >= 0; slot = ring.next())
      expect(sendRecord(primary.replay, ring, slot)).toBe(1);
    for (const host of [primary, secondary]) {
      for (const [, sent] of INPUT) {
        const arrived = await until("replayed frame", () => host.vm.read());
        expect(essence(arrived)).toEqual(essence(sent));
      }
    }
    expect(counterDifference(before, primary.plane.counters())).toEqual({
      mirrored: INPUT.length,
      replayed: INPUT.length,
    });
    ring.close();
  });
});

test("the time of a record is that of the lease's clock", () => {
  const ring = openRing(primary, "primary");
  const before = bootTimeNs();
  primary.vm.write(FRAMES[0][1]);
  const time = ring.view.getBigUint64(ring.offset(ring.next()) + RECORD.time_ns, true);
  expect(time >= before && time <= bootTimeNs()).toBe(true);
  ring.close();
});
