/**
 * Each program on given bytes, in the kernel: what it decides, what it leaves of the frame, and what it
 * counts.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { DataPlane, ProgramName } from "../../src/ffi/data_plane.ts";
import { type CounterName, ROLE, type Role } from "../../src/ffi/layout.ts";
import { counted, endLease, grantLease, loadFresh, MARK, unload, VERDICT } from "./data_plane_under_test.ts";
import { arp, icmpv6, join, rarp, segment, udp } from "./frames.ts";

const NAME = "verdicts";
let plane: DataPlane;

beforeAll(() => {
  plane = loadFresh(NAME);
});
afterAll(() => unload(NAME, plane));

interface Case {
  what: string;
  program: ProgramName;
  role: Role;
  frame: Uint8Array;
  mark?: number;
  lease?: boolean;
  divert?: boolean;
  verdict: number;
  counts: Partial<Record<CounterName, number>>;
  markAfter?: number;
}

const data = segment({ payload: [1, 2, 3] });
const input = segment({ from: "client", payload: [4, 5, 6] });

const CASES: Case[] = [
  {
    what: "the VM's frame is dropped while nothing is known",
    program: "from_vm",
    role: ROLE.BLOCKED,
    frame: data,
    verdict: VERDICT.SHOT,
    counts: { dropped_blocked: 1 },
  },
  {
    what: "the VM's frame is dropped under a role that does not exist",
    program: "from_vm",
    role: 9 as Role,
    frame: data,
    verdict: VERDICT.SHOT,
    counts: { dropped_blocked: 1 },
  },
  {
    what: "ARP does not pass either while nothing is known",
    program: "from_vm",
    role: ROLE.BLOCKED,
    frame: arp("guest"),
    verdict: VERDICT.SHOT,
    counts: { dropped_blocked: 1 },
  },
  {
    what: "a VM that runs alone sends",
    program: "from_vm",
    role: ROLE.SOLO,
    frame: data,
    verdict: VERDICT.OK,
    counts: { passed_solo: 1 },
  },
  {
    what: "a VM that runs alone sends nothing without a lease",
    program: "from_vm",
    role: ROLE.SOLO,
    frame: data,
    lease: false,
    verdict: VERDICT.SHOT,
    counts: { dropped_lease: 1 },
  },
  {
    what: "the primary's TCP is held",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: data,
    verdict: VERDICT.SHOT,
    counts: { held: 1 },
  },
  {
    what: "the primary's UDP is held",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: udp("guest", [1, 2, 3]),
    verdict: VERDICT.SHOT,
    counts: { held: 1 },
  },
  {
    what: "the primary's frames are held without a lease too",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: data,
    lease: false,
    verdict: VERDICT.SHOT,
    counts: { held: 1 },
  },
  {
    what: "a frame with one byte behind its Ethernet header is held",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: join(data.subarray(0, 12), [0x88, 0xb5, 1]),
    verdict: VERDICT.SHOT,
    counts: { held: 1 },
  },
  {
    what: "the primary's ARP passes",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: arp("guest"),
    verdict: VERDICT.OK,
    counts: { passed_direct: 1 },
  },
  {
    what: "the primary's ARP in a VLAN passes",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: arp("guest", [5]),
    verdict: VERDICT.OK,
    counts: { passed_direct: 1 },
  },
  {
    what: "the primary's ARP does not pass without a lease",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: arp("guest"),
    lease: false,
    verdict: VERDICT.SHOT,
    counts: { dropped_lease: 1 },
  },
  {
    what: "QEMU's announcement passes",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: rarp(),
    verdict: VERDICT.OK,
    counts: { passed_direct: 1 },
  },
  ...[133, 134, 135, 136, 137].map((type) => ({
    what: `the primary's neighbour discovery passes (type ${type})`,
    program: "from_vm" as const,
    role: ROLE.PRIMARY,
    frame: icmpv6(type),
    verdict: VERDICT.OK,
    counts: { passed_direct: 1 },
  })),
  ...[128, 129, 132, 138].map((type) => ({
    what: `other ICMPv6 is held (type ${type})`,
    program: "from_vm" as const,
    role: ROLE.PRIMARY,
    frame: icmpv6(type),
    verdict: VERDICT.SHOT,
    counts: { held: 1 },
  })),
  {
    what: "what looks like neighbour discovery but could come from afar is held",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: icmpv6(135, 254),
    verdict: VERDICT.SHOT,
    counts: { held: 1 },
  },
  {
    what: "neighbour discovery that is cut off before its type is held",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: icmpv6(135).subarray(0, 54),
    verdict: VERDICT.SHOT,
    counts: { held: 1 },
  },
  {
    what: "three VLAN tags are not looked through",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: arp("guest", [1, 2, 3]),
    verdict: VERDICT.SHOT,
    counts: { held: 1 },
  },
  {
    what: "a released frame of the primary passes, its mark taken off",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: data,
    mark: MARK.inject,
    verdict: VERDICT.OK,
    counts: { passed_released: 1 },
    markAfter: 0,
  },
  {
    what: "a released frame does not pass without a lease",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: data,
    mark: MARK.inject,
    lease: false,
    verdict: VERDICT.SHOT,
    counts: { dropped_lease: 1 },
  },
  {
    what: "what was held is released by a VM that now runs alone",
    program: "from_vm",
    role: ROLE.SOLO,
    frame: data,
    mark: MARK.inject,
    verdict: VERDICT.OK,
    counts: { passed_released: 1 },
    markAfter: 0,
  },
  {
    what: "a released frame does not pass on a secondary",
    program: "from_vm",
    role: ROLE.SECONDARY,
    frame: data,
    mark: MARK.inject,
    verdict: VERDICT.SHOT,
    counts: { dropped_blocked: 1 },
  },
  {
    what: "a released frame does not pass while blocked",
    program: "from_vm",
    role: ROLE.BLOCKED,
    frame: data,
    mark: MARK.inject,
    verdict: VERDICT.SHOT,
    counts: { dropped_blocked: 1 },
  },
  {
    what: "another mark is nobody's release",
    program: "from_vm",
    role: ROLE.PRIMARY,
    frame: data,
    mark: MARK.deliver,
    verdict: VERDICT.SHOT,
    counts: { held: 1 },
  },
  {
    what: "the secondary's frame goes to the tunnel",
    program: "from_vm",
    role: ROLE.SECONDARY,
    frame: data,
    verdict: VERDICT.REDIRECT,
    counts: { forwarded: 1 },
  },
  {
    what: "the secondary's ARP goes nowhere",
    program: "from_vm",
    role: ROLE.SECONDARY,
    frame: arp("guest"),
    verdict: VERDICT.SHOT,
    counts: { forward_suppressed: 1 },
  },
  {
    what: "the secondary's neighbour discovery goes nowhere",
    program: "from_vm",
    role: ROLE.SECONDARY,
    frame: icmpv6(136),
    verdict: VERDICT.SHOT,
    counts: { forward_suppressed: 1 },
  },
  {
    what: "a frame to be released gets its mark and goes to the tap",
    program: "inject",
    role: ROLE.PRIMARY,
    frame: data,
    verdict: VERDICT.REDIRECT,
    counts: {},
    markAfter: MARK.inject,
  },
  {
    what: "input is dropped while nothing is known",
    program: "to_vm",
    role: ROLE.BLOCKED,
    frame: input,
    verdict: VERDICT.SHOT,
    counts: { input_blocked: 1 },
  },
  {
    what: "input of a VM that runs alone passes",
    program: "to_vm",
    role: ROLE.SOLO,
    frame: input,
    verdict: VERDICT.OK,
    counts: { input_solo: 1 },
  },
  {
    what: "diverted input is put back to a VM that now runs alone",
    program: "to_vm",
    role: ROLE.SOLO,
    frame: input,
    mark: MARK.replay,
    verdict: VERDICT.OK,
    counts: { input_solo: 1, replayed: 1 },
    markAfter: 0,
  },
  {
    what: "input of the primary passes, and a clone goes to the tunnel",
    program: "to_vm",
    role: ROLE.PRIMARY,
    frame: input,
    verdict: VERDICT.OK,
    counts: { mirrored: 1 },
  },
  {
    what: "a mark of the user's own stays on the primary's input",
    program: "to_vm",
    role: ROLE.PRIMARY,
    frame: input,
    mark: 77,
    verdict: VERDICT.OK,
    counts: { mirrored: 1 },
    markAfter: 77,
  },
  {
    what: "input of the primary is diverted before a checkpoint",
    program: "to_vm",
    role: ROLE.PRIMARY,
    frame: input,
    divert: true,
    verdict: VERDICT.SHOT,
    counts: { diverted: 1 },
  },
  {
    what: "diverted input is put back while more is being diverted",
    program: "to_vm",
    role: ROLE.PRIMARY,
    frame: input,
    mark: MARK.replay,
    divert: true,
    verdict: VERDICT.OK,
    counts: { mirrored: 1, replayed: 1 },
    markAfter: 0,
  },
  {
    what: "a frame of the secondary's own bridge does not reach it",
    program: "to_vm",
    role: ROLE.SECONDARY,
    frame: input,
    verdict: VERDICT.SHOT,
    counts: { foreign_dropped: 1 },
  },
  {
    what: "not even with the mark of diverted input",
    program: "to_vm",
    role: ROLE.SECONDARY,
    frame: input,
    mark: MARK.replay,
    verdict: VERDICT.SHOT,
    counts: { foreign_dropped: 1 },
  },
  {
    what: "a mirrored frame reaches the secondary, its mark taken off",
    program: "to_vm",
    role: ROLE.SECONDARY,
    frame: input,
    mark: MARK.deliver,
    verdict: VERDICT.OK,
    counts: {},
    markAfter: 0,
  },
  {
    what: "a frame without tunnel metadata is no mirrored frame",
    program: "from_tunnel",
    role: ROLE.SECONDARY,
    frame: input,
    verdict: VERDICT.SHOT,
    counts: { deliver_rejected: 1 },
  },
  {
    what: "a frame without tunnel metadata does not come from the secondary",
    program: "from_tunnel",
    role: ROLE.PRIMARY,
    frame: data,
    verdict: VERDICT.SHOT,
    counts: { deliver_rejected: 1 },
  },
];

describe("verdicts", () => {
  test.each(CASES)(
    "$program: $what",
    ({ program, role, frame, mark, lease, divert, verdict, counts, markAfter }) => {
      plane.state.role = role;
      plane.state.divertInput = divert ?? false;
      if (lease ?? true) grantLease(plane);
      else endLease(plane);

      let result: ReturnType<DataPlane["testRun"]> | undefined;
      const added = counted(plane, () => {
        result = plane.testRun(program, frame, mark === undefined ? {} : { mark });
      });
      expect(result!.verdict).toBe(verdict);
      expect(added).toEqual(counts);
      expect(result!.frame).toEqual(Uint8Array.from(frame));
      if (markAfter !== undefined) expect(result!.mark).toBe(markAfter);
    },
  );
});
