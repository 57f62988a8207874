/** The order of a checkpoint's steps and what asks for one, with a QMP server that the test scripts. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type CheckpointReport, Checkpoints } from "../../src/agent/checkpoint.ts";
import { createLogger } from "../../src/host/log.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { until } from "../until.ts";
import { ScriptedQmp } from "./scripted_qmp.ts";

const EPOCH = 7;
const LIMIT_MS = 60_000;

let directory: string;
let server: ScriptedQmp;
let client: QmpClient;
let checkpoints: Checkpoints;
/** What the data plane and QEMU are asked for, and what they report, in order. */
let steps: string[];
let reports: CheckpointReport[];
let broken: string[];
let periodMs: number;
let changed: () => void;
/** Whether QEMU and the secondary's agent do what they are asked for. */
let stops: boolean;
let loads: boolean;

function limits(changes: Partial<{ load_timeout_ms: number; stop_timeout_ms: number }> = {}) {
  return {
    min_interval_ms: 0,
    max_wait_ms: 250,
    input_drain_ms: 10,
    stop_timeout_ms: LIMIT_MS,
    load_timeout_ms: LIMIT_MS,
    ...changes,
  };
}

function make(config = limits()): Checkpoints {
  const step = (name: string) => {
    steps.push(name);
  };
  return new Checkpoints(
    {
      config,
      tuning: {
        get periodMs() {
          return periodMs;
        },
        onChange: (listener) => {
          changed = listener;
          return () => undefined;
        },
      },
      qmp: client,
      proxy: {
        inputBarrier: {
          divertInput: () => {
            step("divert");
            return [3];
          },
          drainInput: async () => true,
          replayInput: async () => {
            step("replay");
            return 2;
          },
        },
        comparison: {
          beginCheckpoint: async () => step("begin"),
          releaseCheckpoint: async (stopNs, epoch) => {
            step(`release ${stopNs} ${epoch}`);
            return 5;
          },
        },
      },
      log: createLogger("error"),
      drainPeer: async (mirrored) => {
        step(`drain the peer's ${mirrored.join()}`);
        return true;
      },
      onReport: (report) => reports.push(report),
      onBroken: (reason) => broken.push(reason),
    },
    EPOCH,
  );
}

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-checkpoint-"));
  steps = [];
  reports = [];
  broken = [];
  periodMs = LIMIT_MS;
  stops = true;
  loads = true;
  const path = join(directory, "qmp.sock");
  server = await ScriptedQmp.listen(path, (command) => {
    if (command !== "migrate-set-parameters" || !stops) return;
    steps.push("ask QEMU");
    // After the answer.
    setImmediate(() => {
      server.emit("STOP", 10);
      if (!loads) return;
      checkpoints.peerLoaded(checkpoints.epoch + 1);
      server.emit("RESUME", 25);
    });
  });
  client = await QmpClient.connect(path);
  checkpoints = make();
});

afterEach(async () => {
  await checkpoints.stop();
  client.close();
  server.close();
  rmSync(directory, { recursive: true, force: true });
});

const made = (count: number) => until("the checkpoints are made", () => reports.length === count);

test("its steps come in order, and what it covers is told by QEMU's own time of the STOP", async () => {
  const report = await checkpoints.runOnce("prime");
  expect(steps).toEqual([
    "divert",
    "drain the peer's 3",
    "begin",
    "ask QEMU",
    `release 1000010000000 ${EPOCH + 1}`,
    "replay",
  ]);
  expect(report).toMatchObject({
    cause: "prime",
    epoch: EPOCH + 1,
    pauseMs: 15,
    inputDrained: true,
    releasedFrames: 5,
    replayedFrames: 2,
  });
  expect(checkpoints.epoch).toBe(EPOCH + 1);
});

test("requests that come before one begins are one checkpoint", async () => {
  checkpoints.request("divergence");
  checkpoints.request("missing");
  checkpoints.begin();
  await made(1);
  checkpoints.request("overflow");
  await made(2);
  expect(reports.map(({ cause }) => cause)).toEqual(["divergence", "overflow"]);
});

test("a shorter period counts from the last checkpoint, at once", async () => {
  checkpoints.begin();
  periodMs = 0;
  changed();
  await made(1);
  periodMs = LIMIT_MS;
  expect(reports[0]?.cause).toBe("periodic");
});

test("none begins while they are paused", async () => {
  checkpoints.begin();
  await checkpoints.pause();
  checkpoints.request("requested");
  await client.execute("query-status"); // what was under way has had its turn
  expect(steps).toEqual([]);
  checkpoints.goOn();
  await made(1);
});

test("a pause waits for the one under way", async () => {
  loads = false;
  checkpoints.begin();
  checkpoints.request("requested");
  await until("QEMU is asked", () => steps.includes("ask QEMU"));
  let paused = false;
  const pause = checkpoints.pause().then(() => {
    paused = true;
  });
  await client.execute("query-status");
  expect(paused).toBe(false);
  checkpoints.peerLoaded(EPOCH + 1);
  server.emit("RESUME", 30);
  await pause;
  expect(reports).toHaveLength(1);
});

test("after the last one there is none", async () => {
  checkpoints.begin();
  await checkpoints.last("requested");
  checkpoints.request("divergence");
  await client.execute("query-status");
  expect(reports).toHaveLength(1);
});

test("the report of a checkpoint that an earlier agent asked for does not count", async () => {
  loads = false;
  const report = checkpoints.runOnce("restart");
  await until("QEMU is asked", () => steps.includes("ask QEMU"));
  checkpoints.peerLoaded(EPOCH);
  await client.execute("query-status");
  expect(checkpoints.epoch).toBe(EPOCH);
  checkpoints.peerLoaded(EPOCH + 1);
  server.emit("RESUME", 30);
  expect((await report).epoch).toBe(EPOCH + 1);
});

test("a secondary that does not load in time breaks the pair", async () => {
  loads = false;
  checkpoints = make(limits({ stop_timeout_ms: 10, load_timeout_ms: 10 }));
  checkpoints.begin();
  checkpoints.request("requested");
  await until("it is given up", () => broken.length > 0);
  expect(broken).toEqual(["the secondary did not load the checkpoint within 20 ms"]);
  expect(steps.at(-1)).toBe("ask QEMU"); // nothing is released
});

test("to end them is no break, and who waits for the last one is told", async () => {
  loads = false;
  checkpoints.begin();
  const last = checkpoints.last("requested").catch((error: Error) => error.message);
  await until("QEMU is asked", () => steps.includes("ask QEMU"));
  await checkpoints.stop();
  expect(await last).toBe("checkpoints were ended");
  expect(broken).toEqual([]);
});
