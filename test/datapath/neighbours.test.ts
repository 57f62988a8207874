/**
 * Several VMs on one agent: each has a data path in a thread of its own, so a VM with much to release does not hold up
 * another one's frames. Shown by order, not by a clock: what the quiet VM sends after the busy one's backlog has begun to
 * leave arrives before the backlog's end.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { Traffic } from "../../src/bench/traffic.ts";
import { COMPARER_LIMITS } from "../../src/compare/comparer.ts";
import { DataPath } from "../../src/datapath/handle.ts";
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import { ROLE } from "../../src/ffi/layout.ts";
import { ifindex, Mapping } from "../../src/ffi/libc.ts";
import { inNamespace } from "../../src/ffi/netns.ts";
import { Tap } from "../../src/ffi/tap.ts";
import { grantLease, MARK } from "../bpf/data_plane_under_test.ts";
import {
  addNamespace,
  ip,
  linkHosts,
  REPLICATION,
  removeNamespaces,
  startPlane,
  stopPlane,
  until,
} from "../bpf/network.ts";

const PREFIX = "colo-test-neighbours-";
const BACKLOG = { payloadBytes: 64, flows: 100, rounds: 300 };
const ROUNDS = 5;

/** A primary and its secondary, with their VMs played by the test. */
class ProtectedVm {
  readonly vm: Tap;
  readonly replica: Tap;
  readonly far: Tap;
  readonly plane: DataPlane;
  readonly path: DataPath;
  readonly #names: readonly string[];
  readonly #planes: readonly DataPlane[];

  constructor(name: string) {
    const hosts = ["p", "s"].map((host) => `${PREFIX}${name}${host}`);
    for (const host of hosts) addNamespace(host);
    linkHosts(hosts[0], hosts[1]);
    [this.vm, this.far] = inNamespace(hosts[0], () => [new Tap("vm"), new Tap("far")]);
    this.replica = inNamespace(hosts[1], () => new Tap("vm"));
    ip(`-n ${hosts[0]} link add br0 type bridge mcast_snooping 0`);
    for (const port of ["vm", "far"]) ip(`-n ${hosts[0]} link set ${port} master br0 up`);
    ip(`-n ${hosts[0]} link set br0 up`);
    ip(`-n ${hosts[1]} link set vm up`);
    this.#names = hosts.map((_, i) => `neighbours-${name}-${i}`);
    this.#planes = hosts.map((namespace, i) =>
      startPlane({
        name: this.#names[i],
        namespace,
        tap: "vm",
        peerIpv4: REPLICATION.ipv4[1 - i],
        ringBytes: 16 * 1024 * 1024,
      }),
    );
    const [plane, secondary] = this.#planes;
    this.plane = plane;
    plane.state.role = ROLE.PRIMARY;
    grantLease(plane);
    secondary.state.role = ROLE.SECONDARY;
    secondary.state.epoch = 1;
    secondary.state.rewriteEpoch = 1;
    this.path = inNamespace(
      hosts[0],
      () =>
        new DataPath(
          {
            dataPlane: plane,
            injectIfindex: ifindex("inj0"),
            tapIfindex: ifindex("vm"),
            replayMark: MARK.replay,
            maxWaitMs: 60_000,
            rules: {},
            limits: COMPARER_LIMITS,
          },
          {
            diverged: () => {},
            failed: (message) => {
              throw new Error(message);
            },
          },
        ),
    );
  }

  async close(): Promise<void> {
    await this.path.close();
    this.#planes.forEach((plane, i) => {
      stopPlane(this.#names[i], plane);
    });
    for (const tap of [this.vm, this.replica, this.far]) tap.close();
  }
}

let busy: ProtectedVm;
let quiet: ProtectedVm;
const buffer = new Mapping(4096);

beforeAll(async () => {
  removeNamespaces(PREFIX);
  busy = new ProtectedVm("busy");
  quiet = new ProtectedVm("quiet");
  await Promise.all([busy.path.start(1), quiet.path.start(1)]);
});
afterAll(async () => {
  await busy?.close();
  await quiet?.close();
  buffer.close();
  removeNamespaces(PREFIX);
});

/** Sends segments `from` to `to` of the traffic into these taps. */
function send(traffic: Traffic, from: number, to: number, taps: readonly Tap[], streamStart: number): void {
  const view = new DataView(buffer.buffer);
  traffic.lay(new Uint8Array(buffer.buffer), 0);
  for (let i = from; i < to; i++) {
    const length = traffic.patch(view, 0, i, streamStart);
    for (const tap of taps) tap.writeFrom(buffer.address, length);
  }
}

test("a quiet VM's frames do not wait for a busy one's backlog", async () => {
  const backlog = new Traffic(BACKLOG);
  const single = new Traffic({ payloadBytes: 64, flows: 1, rounds: ROUNDS });
  for (let round = 0; round < ROUNDS; round++) {
    // Nothing of it has a counterpart: all of it is held.
    send(backlog, 0, backlog.count, [busy.vm], round * BACKLOG.rounds * BACKLOG.payloadBytes);
    await until("held backlog", () => busy.path.shared.stat("held_frames") === backlog.count);
    while (quiet.far.read() !== undefined);
    const before = busy.plane.counters().passed_released;
    const left = () => backlog.count - (busy.plane.counters().passed_released - before);

    const released = busy.path.releaseAlone();
    while (left() === backlog.count) await Bun.sleep(0);
    send(single, round, round + 1, [quiet.vm, quiet.replica], 0);
    while (quiet.far.read() === undefined) if (left() === 0) break;
    expect(left()).toBeGreaterThan(0);
    expect(await released).toBe(backlog.count);
    await until("end of the backlog", () => left() === 0);
    await busy.path.start(1);
  }
}, 60_000);
