/** TCP numbers of a VM that is, or was, a secondary: bpf/rewrite.h on given bytes, in the kernel. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import { CONNECTION, CONNECTION_KEY_BYTES, ROLE } from "../../src/ffi/layout.ts";
import { counted, grantLease, loadFresh, MARK, unload, VERDICT } from "./data_plane_under_test.ts";
import { be16, join, option, readSegment, type SegmentOptions, segment, tcp } from "./frames.ts";

const NAME = "rewrite";
let plane: DataPlane;

beforeAll(() => {
  plane = loadFresh(NAME, { connectionsMax: 16 });
});
afterAll(() => unload(NAME, plane));
beforeEach(() => {
  grantLease(plane);
  plane.connections.clear();
  plane.state.rewriteEpoch = 1;
});

/** What the two VMs chose when they answered the same client. The secondary's numbers wrap soon. */
const PRIMARY_ISN = 0x1000_0000;
const SECONDARY_ISN = 0xffff_ff00;
const PRIMARY_TSVAL = 5_000;
const SECONDARY_TSVAL = 0xffff_fff0;
const CLIENT_ISN = 77_000;

const add = (a: number, b: number) => (a + b) >>> 0;
const primary = (n: number) => add(PRIMARY_ISN, n);
const secondary = (n: number) => add(SECONDARY_ISN, n);

const stamps = (value: number, echo: number) => [
  ...option.nop,
  ...option.nop,
  ...option.timestamps(value, echo),
];

/** What the guest sends, as the client's side would see it. */
function fromGuest(o: SegmentOptions, role: number = ROLE.SECONDARY) {
  plane.state.role = role as typeof ROLE.SECONDARY;
  const { frame, verdict } = plane.testRun("from_vm", segment({ ...o, from: "guest" }));
  expect(verdict).toBe(role === ROLE.SECONDARY ? VERDICT.REDIRECT : VERDICT.OK);
  return readSegment(frame);
}

/**
 * What the client sends, as the guest would see it. A secondary's input takes the same way behind the tunnel.
 */
function toGuest(o: SegmentOptions) {
  plane.state.role = ROLE.SOLO;
  const { frame, verdict } = plane.testRun("to_vm", segment({ ...o, from: "client" }));
  expect(verdict).toBe(VERDICT.OK);
  return readSegment(frame);
}

/**
 * The client has connected to the guest: its SYN, the secondary's SYN|ACK, the acknowledgment of the
 * primary's.
 */
function passiveOpen(o: SegmentOptions = {}) {
  const syn = { sequence: CLIENT_ISN, flags: tcp.SYN, options: stamps(100, 0) };
  toGuest({ ...o, ...syn });
  fromGuest({
    ...o,
    sequence: SECONDARY_ISN,
    acknowledgment: add(CLIENT_ISN, 1),
    flags: tcp.SYN | tcp.ACK,
    options: stamps(SECONDARY_TSVAL, 100),
  });
  return toGuest({
    ...o,
    sequence: add(CLIENT_ISN, 1),
    acknowledgment: primary(1),
    options: stamps(110, PRIMARY_TSVAL),
  });
}

const FORMS: [string, SegmentOptions][] = [
  ["IPv4", { version: 4 }],
  ["IPv6", { version: 6 }],
  ["IPv4 in a VLAN", { version: 4, vlans: [9] }],
  ["IPv6 in two VLANs", { version: 6, vlans: [9, 10] }],
  [
    "IPv6 with hop-by-hop options",
    { version: 6, ipv6Extensions: { first: 0, bytes: [6, 0, 1, 4, 0, 0, 0, 0] } },
  ],
  [
    "IPv6 with destination options and a first fragment",
    { version: 6, ipv6Extensions: { first: 60, bytes: [44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 1, 1, 2, 3, 4] } },
  ],
  ["the first fragment of IPv4", { version: 4, ipv4Fragment: 0x2000 }],
];

describe.each(FORMS)("over %s", (_form, form) => {
  test("the SYN|ACK keeps its own numbers, the handshake's last segment is put right", () => {
    const got = passiveOpen(form);
    expect(got.acknowledgment).toBe(secondary(1));
    expect(got.timestamps).toEqual({ value: 110, echo: SECONDARY_TSVAL });
    expect(got.checksumRight).toBe(true);
  });

  test("what the guest sends carries the primary's numbers", () => {
    passiveOpen(form);
    const got = fromGuest({
      ...form,
      sequence: secondary(1000), // beyond the wrap
      acknowledgment: CLIENT_ISN + 1,
      options: stamps(add(SECONDARY_TSVAL, 40), 110),
      payload: [1, 2, 3, 4, 5],
    });
    expect(got).toEqual({
      sequence: primary(1000),
      acknowledgment: CLIENT_ISN + 1,
      timestamps: { value: PRIMARY_TSVAL + 40, echo: 110 },
      sackEdges: [],
      checksumRight: true,
    });
  });

  test("acknowledgments, SACK blocks and timestamps reach the guest in its own numbers", () => {
    passiveOpen(form);
    const got = toGuest({
      ...form,
      sequence: CLIENT_ISN + 1,
      acknowledgment: primary(500),
      options: [
        ...stamps(200, PRIMARY_TSVAL + 3),
        ...option.nop,
        ...option.nop,
        ...option.sack(primary(700), primary(800), primary(1000), primary(1100), primary(1), primary(90)),
      ],
      payload: [9, 8, 7],
    });
    expect(got).toEqual({
      sequence: CLIENT_ISN + 1,
      acknowledgment: secondary(500),
      timestamps: { value: 200, echo: add(SECONDARY_TSVAL, 3) },
      sackEdges: [700, 800, 1000, 1100, 1, 90].map(secondary),
      checksumRight: true,
    });
  });
});

describe("options in odd places", () => {
  // The words of an option that begins at an odd offset straddle those of the checksum.
  test.each([0, 1, 2, 3])("behind %i NOPs", (nops) => {
    passiveOpen();
    const before = new Array(nops).fill(1);
    const sent = fromGuest({
      sequence: secondary(10),
      options: [...before, ...option.timestamps(add(SECONDARY_TSVAL, 0x1234), 110)],
    });
    expect(sent.timestamps).toEqual({ value: PRIMARY_TSVAL + 0x1234, echo: 110 });
    expect(sent.checksumRight).toBe(true);

    const received = toGuest({
      acknowledgment: primary(20),
      options: [
        ...before,
        ...option.sack(primary(30), primary(40), primary(50), primary(60)),
        ...option.timestamps(5, 6_789),
      ],
      payload: [1],
    });
    expect(received.sackEdges).toEqual([30, 40, 50, 60].map(secondary));
    expect(received.timestamps).toEqual({ value: 5, echo: add(SECONDARY_TSVAL, 1_789) });
    expect(received.checksumRight).toBe(true);
  });
});

describe("learning", () => {
  test("a connection that the guest opens: the server's SYN|ACK is put right", () => {
    const sent = fromGuest({ sequence: SECONDARY_ISN, flags: tcp.SYN, options: stamps(SECONDARY_TSVAL, 0) });
    expect(sent.sequence).toBe(SECONDARY_ISN);
    const answer = toGuest({
      sequence: CLIENT_ISN,
      acknowledgment: primary(1),
      flags: tcp.SYN | tcp.ACK,
      options: stamps(1, PRIMARY_TSVAL),
    });
    expect(answer.acknowledgment).toBe(secondary(1));
    expect(answer.timestamps).toEqual({ value: 1, echo: SECONDARY_TSVAL });
    expect(answer.checksumRight).toBe(true);
    expect(fromGuest({ sequence: secondary(1), acknowledgment: CLIENT_ISN + 1 }).sequence).toBe(primary(1));
  });

  test("a connection that is refused: the RST|ACK is put right", () => {
    fromGuest({ sequence: SECONDARY_ISN, flags: tcp.SYN });
    const answer = toGuest({ sequence: 0, acknowledgment: primary(1), flags: tcp.RST | tcp.ACK });
    expect(answer.acknowledgment).toBe(secondary(1));
  });

  test("without timestamps only sequence numbers change", () => {
    fromGuest({ sequence: SECONDARY_ISN, acknowledgment: 1, flags: tcp.SYN | tcp.ACK });
    expect(toGuest({ acknowledgment: primary(1) }).acknowledgment).toBe(secondary(1));
    const got = fromGuest({ sequence: secondary(5), options: stamps(123, 456) });
    expect(got.sequence).toBe(primary(5));
    expect(got.timestamps).toEqual({ value: 123, echo: 456 });
  });

  test("the acknowledgment may come with data", () => {
    fromGuest({ sequence: SECONDARY_ISN, flags: tcp.SYN | tcp.ACK });
    const got = toGuest({ acknowledgment: primary(1), payload: [1, 2, 3], flags: tcp.ACK | tcp.PSH });
    expect(got.acknowledgment).toBe(secondary(1));
    expect(got.checksumRight).toBe(true);
  });

  test("a repeated SYN|ACK changes nothing and carries the primary's number once it is known", () => {
    passiveOpen();
    const repeated = { sequence: SECONDARY_ISN, acknowledgment: CLIENT_ISN + 1, flags: tcp.SYN | tcp.ACK };
    expect(fromGuest({ ...repeated, options: stamps(add(SECONDARY_TSVAL, 900), 100) }).sequence).toBe(
      PRIMARY_ISN,
    );
    expect(toGuest({ acknowledgment: primary(50) }).acknowledgment).toBe(secondary(50));
    expect(fromGuest({ sequence: secondary(60) }).sequence).toBe(primary(60));
  });

  test("a duplicate SYN of the client's does not disturb the connection", () => {
    passiveOpen();
    const syn = toGuest({ sequence: CLIENT_ISN, flags: tcp.SYN, options: stamps(100, 0) });
    expect(syn.sequence).toBe(CLIENT_ISN);
    // The guest's answer is a challenge acknowledgment.
    expect(fromGuest({ sequence: secondary(1), acknowledgment: CLIENT_ISN + 1 }).sequence).toBe(primary(1));
    expect(toGuest({ acknowledgment: primary(2) }).acknowledgment).toBe(secondary(2));
    expect(plane.connections.count()).toBe(1);
  });

  test("a new connection of the same addresses and ports is learned anew", () => {
    passiveOpen();
    fromGuest({ sequence: 3_000, acknowledgment: 1, flags: tcp.SYN | tcp.ACK });
    expect(toGuest({ acknowledgment: 9_001 }).acknowledgment).toBe(3_001);
    expect(fromGuest({ sequence: 3_010 }).sequence).toBe(9_010);
    expect(plane.connections.count()).toBe(1);
  });

  test("connections are told apart by port and by IP version", () => {
    passiveOpen();
    passiveOpen({ version: 6 });
    expect(fromGuest({ sequence: secondary(5), clientPort: 40001 }).sequence).toBe(secondary(5));
    fromGuest({ sequence: 100, flags: tcp.SYN | tcp.ACK, clientPort: 40001 });
    expect(toGuest({ acknowledgment: 201, clientPort: 40001 }).acknowledgment).toBe(101);
    expect(toGuest({ acknowledgment: primary(1) }).acknowledgment).toBe(secondary(1));
    expect(toGuest({ acknowledgment: primary(1), version: 6 }).acknowledgment).toBe(secondary(1));
    expect(plane.connections.count()).toBe(3);
  });

  test("a full map is counted, and the frame still goes out", () => {
    const added = counted(plane, () => {
      for (let port = 1; port <= 20; port++) {
        fromGuest({ sequence: 5, flags: tcp.SYN | tcp.ACK, clientPort: port });
      }
    });
    expect(added).toEqual({ forwarded: 20, connection_full: 4 });
    expect(plane.connections.count()).toBe(16);
  });
});

describe("ends", () => {
  test("a bare RST of the guest carries the primary's number", () => {
    passiveOpen();
    const got = fromGuest({ sequence: secondary(30), flags: tcp.RST });
    expect(got.sequence).toBe(primary(30));
    expect(got.checksumRight).toBe(true);
  });

  test("a FIN of the guest is put right, and so is its acknowledgment", () => {
    passiveOpen();
    expect(fromGuest({ sequence: secondary(30), flags: tcp.FIN | tcp.ACK }).sequence).toBe(primary(30));
    expect(toGuest({ acknowledgment: primary(31), flags: tcp.FIN | tcp.ACK }).acknowledgment).toBe(
      secondary(31),
    );
  });

  test("a RST of the client's without ACK is left as it is", () => {
    passiveOpen();
    const got = toGuest({ sequence: 12, acknowledgment: 34, flags: tcp.RST, options: stamps(5, 6) });
    expect(got).toMatchObject({ sequence: 12, acknowledgment: 34, timestamps: { value: 5, echo: 6 } });
  });

  test("a RST of the client's with ACK is put right", () => {
    passiveOpen();
    expect(toGuest({ acknowledgment: primary(9), flags: tcp.RST | tcp.ACK }).acknowledgment).toBe(
      secondary(9),
    );
  });
});

describe("epochs", () => {
  test("a checkpoint makes every connection one without difference", () => {
    passiveOpen();
    plane.state.rewriteEpoch = 2;
    expect(toGuest({ acknowledgment: primary(50) }).acknowledgment).toBe(primary(50));
    expect(fromGuest({ sequence: primary(50) }).sequence).toBe(primary(50));
    expect(plane.connections.clear(2)).toBe(1);
    expect(plane.connections.count()).toBe(0);
  });

  test("a checkpoint between SYN|ACK and acknowledgment leaves the connection alone", () => {
    fromGuest({ sequence: SECONDARY_ISN, flags: tcp.SYN | tcp.ACK });
    plane.state.rewriteEpoch = 2;
    expect(toGuest({ acknowledgment: primary(1) }).acknowledgment).toBe(primary(1));
  });

  test("connections of the current epoch are not cleared with the older ones", () => {
    passiveOpen({ clientPort: 1 });
    plane.state.rewriteEpoch = 2;
    passiveOpen({ clientPort: 2 });
    expect(plane.connections.clear(2)).toBe(1);
    expect(fromGuest({ sequence: secondary(5), clientPort: 2 }).sequence).toBe(primary(5));
  });
});

describe("an empty map", () => {
  test("is known as such, so that nobody looks there", () => {
    expect(plane.state.connectionsKept).toBe(false);
    passiveOpen();
    expect(plane.state.connectionsKept).toBe(true);
    plane.state.rewriteEpoch = 2;
    passiveOpen({ clientPort: 2 });
    plane.connections.clear(2);
    expect(plane.state.connectionsKept).toBe(true);
    plane.connections.clear(3);
    expect(plane.state.connectionsKept).toBe(false);
  });
});

describe("a VM that took over", () => {
  test("goes on with the client in the old primary's numbers", () => {
    passiveOpen();
    expect(fromGuest({ sequence: secondary(5) }, ROLE.SOLO).sequence).toBe(primary(5));
    expect(toGuest({ acknowledgment: primary(6) }).acknowledgment).toBe(secondary(6));
  });

  test("learns from the last handshake too", () => {
    fromGuest({ sequence: SECONDARY_ISN, flags: tcp.SYN | tcp.ACK });
    expect(toGuest({ acknowledgment: primary(1) }).acknowledgment).toBe(secondary(1));
    expect(fromGuest({ sequence: secondary(1) }, ROLE.SOLO).sequence).toBe(primary(1));
  });

  test("opens new connections in its own numbers", () => {
    expect(fromGuest({ sequence: 5, flags: tcp.SYN }, ROLE.SOLO).sequence).toBe(5);
    expect(toGuest({ acknowledgment: 6, flags: tcp.SYN | tcp.ACK }).acknowledgment).toBe(6);
    expect(plane.connections.count()).toBe(0);
  });

  test("forgets a connection once it accepts another one on the same ports", () => {
    passiveOpen();
    toGuest({ sequence: 900, flags: tcp.SYN });
    expect(
      fromGuest({ sequence: 800, acknowledgment: 901, flags: tcp.SYN | tcp.ACK }, ROLE.SOLO).sequence,
    ).toBe(800);
    expect(toGuest({ acknowledgment: 801 }).acknowledgment).toBe(801);
    expect(fromGuest({ sequence: 801 }, ROLE.SOLO).sequence).toBe(801);
    expect(plane.connections.count()).toBe(0);
  });

  test("as a primary again: its frames are put right when they are released, not when they are held", () => {
    passiveOpen();
    plane.state.role = ROLE.PRIMARY;
    const sent = segment({ sequence: secondary(5), payload: [1, 2] });
    expect(plane.testRun("from_vm", sent).frame).toEqual(Uint8Array.from(sent));
    const released = plane.testRun("from_vm", sent, { mark: MARK.inject });
    expect(released.verdict).toBe(VERDICT.OK);
    expect(readSegment(released.frame)).toMatchObject({ sequence: primary(5), checksumRight: true });
  });

  test("as a primary again: its input is put right", () => {
    passiveOpen();
    plane.state.role = ROLE.PRIMARY;
    const got = plane.testRun("to_vm", segment({ from: "client", acknowledgment: primary(5) }));
    expect(readSegment(got.frame)).toMatchObject({ acknowledgment: secondary(5), checksumRight: true });
  });
});

describe("a VM that took over while it opened a connection", () => {
  const MOVED = add(SECONDARY_ISN, 0x8000_0000);
  const open = () =>
    fromGuest({ sequence: SECONDARY_ISN, flags: tcp.SYN, options: stamps(SECONDARY_TSVAL, 0) });
  const openAgain = (role: number = ROLE.SOLO) =>
    fromGuest(
      { sequence: SECONDARY_ISN, flags: tcp.SYN, options: stamps(add(SECONDARY_TSVAL, 1000), 0) },
      role,
    );

  test("repeats its SYN far from the number that the peer may know", () => {
    expect(open().sequence).toBe(SECONDARY_ISN);
    expect(openAgain(ROLE.SECONDARY).sequence).toBe(SECONDARY_ISN);
    for (let i = 0; i < 2; i++) {
      const got = openAgain();
      expect(got.sequence).toBe(MOVED);
      expect(got.timestamps).toEqual({ value: add(SECONDARY_TSVAL, 1000), echo: 0 });
      expect(got.checksumRight).toBe(true);
    }
  });

  test("a peer that knows nothing accepts it, in numbers that are put right from then on", () => {
    open();
    openAgain();
    const accepted = toGuest({
      sequence: 9_000,
      acknowledgment: add(MOVED, 1),
      flags: tcp.SYN | tcp.ACK,
      options: stamps(50, add(SECONDARY_TSVAL, 1000)),
    });
    expect(accepted.acknowledgment).toBe(add(SECONDARY_ISN, 1));
    expect(accepted.timestamps).toEqual({ value: 50, echo: add(SECONDARY_TSVAL, 1000) });
    expect(fromGuest({ sequence: add(SECONDARY_ISN, 1) }, ROLE.SOLO).sequence).toBe(add(MOVED, 1));
  });

  test("a peer that knows the old primary's SYN says so; the guest resets it in its numbers", () => {
    open();
    openAgain();
    const refused = toGuest({ sequence: 9_001, acknowledgment: primary(1) });
    // Not what the guest has sent, so it answers with a RST at this place (RFC 9293, 3.5.2).
    const { acknowledgment } = refused;
    expect(acknowledgment).not.toBe(add(SECONDARY_ISN, 1));
    expect(fromGuest({ sequence: acknowledgment, flags: tcp.RST }, ROLE.SOLO).sequence).toBe(primary(1));
  });

  test("an answer to the old primary's SYN before the guest repeats its own is put right", () => {
    open();
    const got = toGuest({ sequence: 9_000, acknowledgment: primary(1), flags: tcp.SYN | tcp.ACK });
    expect(got.acknowledgment).toBe(secondary(1));
    expect(openAgain().sequence).toBe(PRIMARY_ISN);
  });

  test("a SYN|ACK that is repeated keeps its number: the client may not know any", () => {
    const answer = { sequence: SECONDARY_ISN, acknowledgment: 1, flags: tcp.SYN | tcp.ACK };
    fromGuest(answer);
    expect(fromGuest(answer, ROLE.SOLO).sequence).toBe(SECONDARY_ISN);
  });
});

describe("connections that have ended", () => {
  /** Everything was seen at least a little while ago. */
  const NOW = { closedForMs: -1_000, idleForMs: -1_000 };
  const CLOSED_NOW = { closedForMs: -1_000, idleForMs: 3_600_000 };
  const LATER = { closedForMs: 3_600_000, idleForMs: 3_600_000 };
  const guestFin = () => fromGuest({ sequence: secondary(1), flags: tcp.FIN | tcp.ACK });
  const clientFin = () => toGuest({ acknowledgment: primary(2), flags: tcp.FIN | tcp.ACK });

  beforeEach(() => void passiveOpen());

  test("are forgotten when both sides have sent FIN and the time is over", () => {
    guestFin();
    expect(plane.connections.collect(CLOSED_NOW)).toBe(0);
    clientFin();
    expect(plane.connections.collect(LATER)).toBe(0);
    expect(plane.connections.count()).toBe(1);
    expect(plane.connections.collect(CLOSED_NOW)).toBe(1);
    expect(plane.connections.count()).toBe(0);
    expect(plane.state.connectionsKept).toBe(false);
  });

  test("a client's FIN alone ends nothing", () => {
    clientFin();
    expect(plane.connections.collect(CLOSED_NOW)).toBe(0);
    expect(plane.state.connectionsKept).toBe(true);
  });

  test("a RST of the guest's ends it", () => {
    fromGuest({ sequence: secondary(1), flags: tcp.RST });
    expect(plane.connections.collect(CLOSED_NOW)).toBe(1);
  });

  test("a RST of the client's ends it, unless the guest goes on", () => {
    const reset = () => toGuest({ sequence: CLIENT_ISN + 1, flags: tcp.RST });
    reset();
    fromGuest({ sequence: secondary(1) });
    expect(plane.connections.collect(CLOSED_NOW)).toBe(0);
    reset();
    toGuest({ acknowledgment: primary(1) });
    expect(plane.connections.collect(CLOSED_NOW)).toBe(1);
  });

  test("silence ends it after a longer time", () => {
    expect(plane.connections.collect(CLOSED_NOW)).toBe(0);
    expect(plane.connections.collect(NOW)).toBe(1);
  });

  test("a handshake that was never completed ends it", () => {
    fromGuest({ clientPort: 9, sequence: SECONDARY_ISN, flags: tcp.SYN | tcp.ACK });
    expect(plane.connections.count()).toBe(2);
    expect(plane.connections.collect(CLOSED_NOW)).toBe(1);
    expect(plane.connections.count()).toBe(1);
  });

  test("the others stay, and are put right as before", () => {
    guestFin();
    clientFin();
    passiveOpen({ version: 6 });
    expect(plane.connections.collect(CLOSED_NOW)).toBe(1);
    expect(fromGuest({ version: 6, sequence: secondary(7) }).sequence).toBe(primary(7));
    expect(fromGuest({ sequence: secondary(7) }).sequence).toBe(secondary(7));
  });

  test("make room in a full map", () => {
    for (let port = 1; port <= 15; port++) {
      fromGuest({ clientPort: port, sequence: SECONDARY_ISN, flags: tcp.SYN | tcp.ACK });
    }
    const open = () => fromGuest({ clientPort: 99, sequence: SECONDARY_ISN, flags: tcp.SYN | tcp.ACK });
    expect(counted(plane, () => void open())).toEqual({ forwarded: 1, connection_full: 1 });
    expect(plane.connections.collect(CLOSED_NOW)).toBe(15);
    expect(counted(plane, () => void open())).toEqual({ forwarded: 1 });
  });

  test("the age of an inherited one counts from when it was handed over", () => {
    const exported = plane.connections.export();
    // Long ago, on the clock of a host that was started long before this one.
    new DataView(exported.buffer).setBigUint64(CONNECTION_KEY_BYTES + CONNECTION.last_seen_ns, 1n, true);
    plane.connections.import(exported);
    expect(plane.connections.collect({ closedForMs: 60_000, idleForMs: 60_000 })).toBe(0);
    expect(plane.connections.collect(NOW)).toBe(1);
  });
});

describe("a secondary of a VM that once took over", () => {
  const OTHER = "rewrite-heir";
  let heir: DataPlane;

  beforeAll(() => {
    heir = loadFresh(OTHER, { connectionsMax: 16 });
  });
  afterAll(() => unload(OTHER, heir));
  beforeEach(() => {
    grantLease(heir);
    heir.state.rewriteEpoch = 50;
    passiveOpen();
    fromGuest({ sequence: 1, flags: tcp.SYN | tcp.ACK, clientPort: 2 }); // its numbers are not known yet
    expect(heir.connections.import(plane.connections.export())).toBe(1);
  });

  function at(role: number, program: "from_vm" | "to_vm", o: SegmentOptions) {
    heir.state.role = role as typeof ROLE.SOLO;
    const { frame } = heir.testRun(
      program,
      segment({ ...o, from: program === "from_vm" ? "guest" : "client" }),
      {
        mark: role === ROLE.SECONDARY ? MARK.deliver : 0,
      },
    );
    return readSegment(frame);
  }

  test("shares the numbers of the primary", () => {
    expect(at(ROLE.SECONDARY, "from_vm", { sequence: secondary(5) }).sequence).toBe(secondary(5));
    expect(at(ROLE.SECONDARY, "to_vm", { acknowledgment: secondary(5) }).acknowledgment).toBe(secondary(5));
  });

  test("continues in the client's numbers after its own takeover and any number of checkpoints", () => {
    heir.state.rewriteEpoch = 60;
    expect(heir.connections.clear(60)).toBe(0);
    expect(at(ROLE.SOLO, "from_vm", { sequence: secondary(5) })).toMatchObject({
      sequence: primary(5),
      checksumRight: true,
    });
    expect(at(ROLE.SOLO, "to_vm", { acknowledgment: primary(5) })).toMatchObject({
      acknowledgment: secondary(5),
      checksumRight: true,
    });
  });

  test("hands them on again", () => {
    const third = loadFresh("rewrite-third");
    try {
      expect(third.connections.import(heir.connections.export())).toBe(1);
    } finally {
      unload("rewrite-third", third);
    }
  });

  test("learns a new connection on the same ports as its own", () => {
    at(ROLE.SECONDARY, "from_vm", { sequence: 700, acknowledgment: 1, flags: tcp.SYN | tcp.ACK });
    expect(at(ROLE.SOLO, "to_vm", { acknowledgment: 901 }).acknowledgment).toBe(701);
    expect(at(ROLE.SECONDARY, "from_vm", { sequence: 710 }).sequence).toBe(910);
  });

  test("takes nothing that is not an export", () => {
    expect(() => heir.connections.import(new Uint8Array(71))).toThrow("entries of 72 bytes");
  });
});

describe("what cannot be read stays as it is", () => {
  const whole = segment({ sequence: secondary(5), options: stamps(1, 2) });
  const CASES: [string, Uint8Array][] = [
    ["a TCP header cut off", whole.subarray(0, 14 + 20 + 19)],
    ["an IP header cut off", whole.subarray(0, 14 + 20)],
    ["a TCP header that claims fewer than five words", segment({ sequence: secondary(5), claimedWords: 4 })],
    ["a later fragment", segment({ sequence: secondary(5), ipv4Fragment: 100 })],
    [
      "a later fragment of IPv6",
      segment({
        version: 6,
        ipv6Extensions: { first: 44, bytes: [6, 0, 0, 8, 1, 2, 3, 4] },
        sequence: secondary(5),
      }),
    ],
    ["an IP version that is not that of the frame", join(whole.subarray(0, 14), [0x65], whole.subarray(15))],
    ["an IP header of less than five words", join(whole.subarray(0, 14), [0x44], whole.subarray(15))],
    [
      "extension headers beyond the limit",
      segment({ version: 6, ipv6Extensions: { first: 60, bytes: loop(8) } }),
    ],
    [
      "an extension header beyond the frame",
      segment({ version: 6, ipv6Extensions: { first: 60, bytes: [6, 255] } }),
    ],
  ];

  /** This many destination option headers in a row. */
  function loop(headers: number): number[] {
    return Array.from({ length: headers }, (_, i) => [
      i === headers - 1 ? 6 : 60,
      0,
      1,
      4,
      0,
      0,
      0,
      0,
    ]).flat();
  }

  test.each(CASES)("%s", (_what, frame) => {
    passiveOpen();
    passiveOpen({ version: 6 });
    plane.state.role = ROLE.SECONDARY;
    const { verdict, frame: after } = plane.testRun("from_vm", frame);
    expect(verdict).toBe(VERDICT.REDIRECT);
    expect(after).toEqual(Uint8Array.from(frame));
  });

  const OPTIONS: [string, number[]][] = [
    ["an option of length 0", [8, 0, 1, 1]],
    ["an option of length 1", [8, 1, 1, 1]],
    ["an option longer than the header", [8, 40, 1, 1]],
    ["an option's kind in the last byte", [1, 1, 1, 8]],
    ["a timestamps option of another length", [8, 8, 0, 0, 0, 1, 0, 0]],
    ["a timestamps option behind the end", [0, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 0]],
    ["forty NOPs", new Array(40).fill(1)],
    ["SACK with half a block", [5, 6, 0, 0, 0, 1, 1, 1]],
    ["SACK without blocks", [5, 2, 1, 1]],
  ];

  test.each(OPTIONS)("only the header's numbers with %s", (_what, options) => {
    passiveOpen();
    const sent = segment({ sequence: secondary(5), options, payload: [1, 2, 3] });
    plane.state.role = ROLE.SECONDARY;
    const right = segment({ sequence: primary(5), options, payload: [1, 2, 3] });
    expect(plane.testRun("from_vm", sent).frame).toEqual(right);

    plane.state.role = ROLE.SOLO;
    const got = plane.testRun("to_vm", segment({ from: "client", acknowledgment: primary(5), options }));
    expect(got.frame).toEqual(segment({ from: "client", acknowledgment: secondary(5), options }));
  });

  test("a header that claims more options than the frame has", () => {
    passiveOpen();
    const sent = segment({ sequence: secondary(5), claimedWords: 15 });
    plane.state.role = ROLE.SECONDARY;
    expect(plane.testRun("from_vm", sent).frame).toEqual(segment({ sequence: primary(5), claimedWords: 15 }));
  });

  test("frames of random bytes neither crash nor get lost", () => {
    passiveOpen();
    let seed = 1;
    const random = () => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return seed >>> 24;
    };
    for (let i = 0; i < 2000; i++) {
      // Every second one is a segment with a few bytes changed.
      const frame =
        i % 2 === 0
          ? join(
              whole.subarray(0, 12),
              be16(0x0800),
              Uint8Array.from({ length: 20 + (random() % 200) }, random),
            )
          : segment({ sequence: secondary(i), options: stamps(i, i), payload: [i & 255] });
      if (i % 2 === 1) for (let n = 0; n < 3; n++) frame[14 + (random() % (frame.length - 14))] = random();
      plane.state.role = ROLE.SECONDARY;
      expect(plane.testRun("from_vm", frame).verdict).toBe(VERDICT.REDIRECT);
      plane.state.role = ROLE.SOLO;
      expect(plane.testRun("to_vm", frame).verdict).toBe(VERDICT.OK);
    }
  });
});
