/**
 * Several VMs on one agent: each has a data path in a thread of its own, so a VM with much to release does
 * not hold up another one's frames. Shown by order, not by a clock: what the quiet VM sends after the busy
 * one's backlog has begun to leave arrives before the backlog's end.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { Traffic } from "../../src/bench/segments.ts";
import { Mapping } from "../../src/ffi/libc.ts";
import type { Tap } from "../../src/ffi/tap.ts";
import { removeNamespaces } from "../bpf/network.ts";
import { until } from "../until.ts";
import { ProtectedVm } from "./protected_vm.ts";

const PREFIX = "colo-test-neighbours-";
const BACKLOG = { payloadBytes: 64, flows: 100, rounds: 300 };
const ROUNDS = 5;

let busy: ProtectedVm;
let quiet: ProtectedVm;
const buffer = new Mapping(4096);

beforeAll(async () => {
  removeNamespaces(PREFIX);
  busy = new ProtectedVm(`${PREFIX}busy`);
  quiet = new ProtectedVm(`${PREFIX}quiet`);
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
    await until("the backlog is held", () => busy.path.shared.stat("held_frames") === backlog.count);
    while (quiet.far.read() !== undefined);
    const before = busy.plane.counters().passed_released;
    const left = () => backlog.count - (busy.plane.counters().passed_released - before);

    const released = busy.path.releaseAlone();
    await until("the release has begun", () => left() < backlog.count, { pollMs: 0 });
    send(single, round, round + 1, [quiet.vm, quiet.replica], 0);
    while (quiet.far.read() === undefined) if (left() === 0) break;
    expect(left()).toBeGreaterThan(0);
    expect(await released).toBe(backlog.count);
    await until("the backlog has left", () => left() === 0);
    await busy.path.start(1);
  }
}, 60_000);
