/** What the peer asks and answers is checked before anything of this agent sees it. */
import { describe, expect, test } from "bun:test";
import { PeerMalformedError } from "../../src/agent/control_channel.ts";
import {
  checkedRequests,
  Peer,
  type PeerHandlers,
  type PeerRequests,
  type PeerRequestType,
} from "../../src/agent/peer_api.ts";

const OF_REPLICA = { vm: "vm1", generation: 4 };
const WITH_REASON = { ...OF_REPLICA, reason: "lost" };
const ABOUT = { ready: true, uplink: false };

/** A good body and a good answer of each type. */
const GOOD: PeerRequests = {
  heartbeat: [
    { vms: { vm1: { ...ABOUT, generation: 4 }, vm2: ABOUT } },
    { vms: { vm1: { ...ABOUT, accepted: true }, vm2: ABOUT } },
  ],
  prepare_secondary: [
    { ...OF_REPLICA, proxy: "ebpf", tls: false },
    {
      migrate: { host: "198.18.1.2", port: 7410 },
      nbd: { host: "198.18.1.2", port: 7420, exports: { disk0: "disk0" }, replicaOf: 3 },
    },
  ],
  enter_secondary: [
    { ...OF_REPLICA, proxy: { epoch: 2, nics: [{ mirroredFrames: 9, connections: "AAAA" }] } },
    {},
  ],
  resume_secondary: [OF_REPLICA, { epoch: 7 }],
  restarting: [OF_REPLICA, {}],
  back: [OF_REPLICA, {}],
  abandon: [WITH_REASON, {}],
  succeed: [OF_REPLICA, {}],
  drain_input: [{ vm: "vm1", mirroredFrames: [1, 2], timeoutMs: 20 }, { drained: true }],
  loaded: [{ vm: "vm1", epoch: 7 }, {}],
  replica_lost: [WITH_REASON, {}],
  checkpoint_wanted: [{ vm: "vm1", reason: "output was lost" }, {}],
  give_up: [WITH_REASON, {}],
};
/** Neither a body nor an answer of any type. */
const MALFORMED: [string, unknown][] = [
  ["nothing", undefined],
  ["null", null],
  ["text", "text"],
  ["a number", 7],
  ["a list", []],
];
const TYPES = Object.keys(GOOD) as PeerRequestType[];

function recording() {
  const got: [string, unknown][] = [];
  const handlers = Object.fromEntries(
    TYPES.map((type) => [
      type,
      (body: unknown) => {
        got.push([type, body]);
        return GOOD[type][1];
      },
    ]),
  ) as unknown as PeerHandlers;
  return { got, handle: checkedRequests(handlers) };
}

/** A peer whose answers are these. */
const answering = (answer: unknown) => new Peer({ connected: true, request: async () => answer });

describe.each(TYPES)("%s", (type) => {
  test("a good request and a good answer pass as they are", async () => {
    const { got, handle } = recording();
    const [body, answer] = GOOD[type];
    expect(handle(type, JSON.parse(JSON.stringify(body)))).toEqual(answer);
    expect(got).toEqual([[type, body]]);
    expect(await answering(answer).ask(type, body as never, 1)).toEqual(answer);
  });

  test.each([
    ...MALFORMED,
    ["a VM of another kind", { vm: 7 }],
    ["values of other kinds", { vm: "../vm1", generation: -1, reason: 1, vms: [] }],
  ])("%s is no body of it, and reaches nobody", (_, body) => {
    const { got, handle } = recording();
    expect(() => handle(type, body)).toThrow(PeerMalformedError);
    expect(() => handle(type, body)).toThrow(`request "${type}"`);
    expect(got).toEqual([]);
  });

  test.each(MALFORMED)("%s is no answer to it", async (_, answer) => {
    const asked = answering(answer).ask(type, GOOD[type][0] as never, 1);
    await expect(asked).rejects.toThrow(PeerMalformedError);
  });
});

test.each(["constructor", "__proto__", "toString", "begin", ""])("there is no request %p", (type) => {
  expect(() => recording().handle(type, {})).toThrow(/there is no request/);
});

describe("values", () => {
  const refused: [string, PeerRequestType, object][] = [
    ["a generation that is no whole number", "succeed", { ...OF_REPLICA, generation: 1.5 }],
    ["a generation beyond 2^53", "succeed", { ...OF_REPLICA, generation: 2 ** 53 }],
    ["a VM's name with a path in it", "abandon", { ...WITH_REASON, vm: "../../etc" }],
    ["an unknown proxy", "prepare_secondary", { ...OF_REPLICA, proxy: "dpdk", tls: false }],
    [
      "connections that are not base64",
      "enter_secondary",
      {
        ...OF_REPLICA,
        proxy: { epoch: 1, nics: [{ mirroredFrames: 0, connections: "A*" }] },
      },
    ],
    ["a negative count of frames", "drain_input", { vm: "vm1", mirroredFrames: [-1], timeoutMs: 20 }],
    ["a wait without end", "drain_input", { vm: "vm1", mirroredFrames: [], timeoutMs: 1e12 }],
    ["a heartbeat of half a VM", "heartbeat", { vms: { vm1: { ready: true } } }],
  ];
  test.each(refused)("%s", (_, type, body) => {
    expect(() => recording().handle(type, body)).toThrow(PeerMalformedError);
  });

  test.each([
    ["a port outside 1..65535", { migrate: { host: "198.18.1.2", port: 70_000 } }],
    ["a host that is no IPv4 address", { migrate: { host: "198.18.1.2,exec=rm", port: 7410 } }],
  ])("%s as the secondary's address", async (_, answer) => {
    const asked = answering(answer).ask("prepare_secondary", GOOD.prepare_secondary[0], 1);
    await expect(asked).rejects.toThrow(/answer to "prepare_secondary"/);
  });

  test("the longest list of connections passes", () => {
    const connections = Buffer.alloc(65_536 * 72, 0xa5).toString("base64");
    const body = { ...OF_REPLICA, proxy: { epoch: 1, nics: [{ mirroredFrames: 0, connections }] } };
    expect(recording().handle("enter_secondary", body)).toEqual({});
  });
});
