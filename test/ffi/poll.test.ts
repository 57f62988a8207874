/** Sleeping and being woken: the doorbell by the kernel, the eventfd by another thread. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { join } from "node:path";
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import { ROLE, SLEEP } from "../../src/ffi/layout.ts";
import { closeFd } from "../../src/ffi/libc.ts";
import { createEventfd, signalEventfd, Waiter } from "../../src/ffi/poll.ts";
import { Ring } from "../../src/ffi/ring.ts";
import { grantLease, loadFresh, unload } from "../bpf/data_plane_under_test.ts";
import { segment } from "../bpf/frames.ts";
import { until } from "../until.ts";

const NAME = "poll";
const FRAME = segment({ payload: [1] });
/** For waits that are to end earlier; reaching it is an error. */
const LONG_MS = 60_000;

let plane: DataPlane;
let wakeFd: number;
let waiter: Waiter;

beforeAll(() => {
  plane = loadFresh(NAME);
  plane.state.role = ROLE.PRIMARY;
  grantLease(plane);
});
afterAll(() => unload(NAME, plane));
beforeEach(() => {
  plane.state.consumerSleeping = SLEEP.NONE;
  wakeFd = createEventfd();
  waiter = new Waiter(plane.workers[0].doorbellFd, wakeFd);
});
afterEach(() => {
  waiter.close();
  closeFd(wakeFd);
  const ring = new Ring(plane.workers[0].primary);
  for (let slot = ring.next(); slot >= 0; slot = ring.next()) ring.done(slot);
  ring.close();
});

test("no doorbell rings for a consumer that is awake", () => {
  plane.testRun("from_vm", FRAME);
  expect(waiter.wait(0)).toBe(false);
});

test("the doorbell rings once for a consumer that sleeps, and the flag is cleared with it", () => {
  plane.state.consumerSleeping = SLEEP.ANY;
  plane.testRun("from_vm", FRAME, { repeat: 10 });
  expect(plane.state.consumerSleeping).toBe(SLEEP.NONE);
  expect(waiter.wait(LONG_MS)).toBe(true);
  expect(waiter.wait(0)).toBe(false);
});

test("the doorbell can ring any number of times", () => {
  // The doorbell's ring has room for 256 of them at a time.
  for (let i = 0; i < 1000; i++) {
    plane.state.consumerSleeping = SLEEP.ANY;
    plane.testRun("from_vm", FRAME);
    if (i % 10 === 9) expect(waiter.wait(LONG_MS)).toBe(true);
  }
});

test("a doorbell ring that nobody answers fills up and still wakes", () => {
  for (let i = 0; i < 1000; i++) {
    plane.state.consumerSleeping = SLEEP.ANY;
    plane.testRun("from_vm", FRAME);
  }
  expect(waiter.wait(LONG_MS)).toBe(true);
  expect(waiter.wait(0)).toBe(false);
});

test("a signal wakes, before the wait as well as during it", () => {
  signalEventfd(wakeFd);
  signalEventfd(wakeFd);
  expect(waiter.wait(LONG_MS)).toBe(true);
  expect(waiter.wait(0)).toBe(false);
});

test("a worker that waits for ever is woken by a frame, then by a signal", async () => {
  const worker = new Worker(join(import.meta.dir, "waiting_worker.ts"));
  const messages: unknown[] = [];
  worker.onmessage = ({ data }) => messages.push(data);
  worker.postMessage({ doorbellFd: plane.workers[0].doorbellFd, wakeFd, stateFd: plane.stateFd });
  try {
    await until("worker that sleeps", () => plane.state.consumerSleeping !== SLEEP.NONE);
    plane.testRun("from_vm", FRAME);
    await until("message", () => messages.length === 1);
    await until("worker that sleeps again", () => plane.state.consumerSleeping !== SLEEP.NONE);
    signalEventfd(wakeFd);
    await until("message", () => messages.length === 2);
    expect(messages).toEqual(["woken, flag cleared by the kernel", "woken, flag as it was"]);
    await until("worker that sleeps for good", () => plane.state.consumerSleeping !== SLEEP.NONE);
  } finally {
    worker.terminate();
  }
});
