/**
 * What happens in one run, all of it drawn from the run's seed (but for what the kernel and the machine's
 * load decide).
 */

import { Random } from "../random.ts";
import type { LossRate } from "./loss.ts";
import type { Manner, Task } from "./task.ts";

export interface Scenario {
  seed: number;
  /** Which of the two hosts is the primary's. */
  primary: 0 | 1;
  /** Who connects. */
  opens: "client" | "guest";
  version: 4 | 6;
  client: Task;
  /** By host; they differ in manner only. */
  guests: [Task, Task];
  loss: { toGuest: LossRate; toClient: LossRate; toSecondary: LossRate; toPrimary: LossRate };
  /** From the client's mark to the loss of the primary's host, and from there to the takeover. */
  failoverDelayMs: number;
  takeoverDelayMs: number;
}

export const CLIENT_ADDRESS = { 4: "198.18.0.1", 6: "2001:2::1" } as const;
export const GUEST_ADDRESS = { 4: "198.18.0.2", 6: "2001:2::2" } as const;

const CONNECTIONS_MAX = 3;
const BYTES_MAX = 300_000;
/** Ports of one run are not used again soon: those of earlier ones may be in TIME_WAIT. */
const PORTS_LOW = 2_000;
const LOCAL_PORTS_LOW = 30_000;
const PORT_RUNS = 9_000;

/** @param run counts the runs of a lane, for ports that are not in use */
export function drawScenario(seed: number, run: number): Scenario {
  const random = new Random(seed);
  const primary = random.pick([0, 1] as const);
  const opens = random.pick(["client", "guest"] as const);
  const version = random.pick([4, 6] as const);
  const count = random.pick([1, 1, 2, CONNECTIONS_MAX]);
  const ports = Array.from({ length: count }, (_, i) => PORTS_LOW + (run % PORT_RUNS) * CONNECTIONS_MAX + i);
  const localPort = LOCAL_PORTS_LOW + (run % PORT_RUNS);
  const streams = () => ports.map(() => (random.chance(0.1) ? random.integer(0, 10) : bytes(random)));
  const [up, down] = [streams(), streams()];
  const [upSeed, downSeed] = [random.uint32(), random.uint32()];
  const total = down.reduce((sum, each) => sum + each, 0);

  const task = (guest: boolean): Task => ({
    kind: guest === (opens === "guest") ? "open" : "accept",
    host: (guest ? CLIENT_ADDRESS : GUEST_ADDRESS)[version],
    ports,
    localPort,
    sendBytes: guest ? down : up,
    receiveBytes: guest ? up : down,
    sendSeed: guest ? downSeed : upSeed,
    receiveSeed: guest ? upSeed : downSeed,
    mark: Math.floor(total * (random.chance(0.1) ? random.pick([0, 1]) : random.fraction())),
    manner: drawManner(random),
    mannerSeed: random.uint32(),
  });
  const client = task(false);
  const guests: [Task, Task] = [task(true), task(true)];
  // The kernel draws the same offset for the same pair of addresses.
  guests[0].manner.timestamps = 1;
  guests[1].manner.timestamps = 2;

  return {
    seed,
    primary,
    opens,
    version,
    client,
    guests,
    loss: {
      toGuest: drawLoss(random, 0.03),
      toClient: drawLoss(random, 0.03),
      toSecondary: drawLoss(random, 0.005),
      toPrimary: drawLoss(random, 0.005),
    },
    failoverDelayMs: random.chance(0.5) ? 0 : random.integer(0, 30),
    takeoverDelayMs: random.integer(0, 30),
  };
}

const bytes = (random: Random) => random.integer(1_000, BYTES_MAX);

function drawLoss(random: Random, most: number): LossRate {
  if (random.chance(0.25)) return { loss: 0, again: 0 };
  return { loss: random.fraction() * most, again: random.chance(0.5) ? 0.3 : 0 };
}

function drawManner(random: Random): Manner {
  const writeBytesMax = random.pick([200, 1_000, 5_000, 60_000]);
  const offload = (name: string, probability: number) => [name, random.chance(probability) ? "on" : "off"];
  const checksum = random.chance(0.7);
  return {
    noDelay: random.chance(0.5),
    writeBytesMin: random.integer(1, writeBytesMax),
    writeBytesMax,
    writePauseBytes: random.pick([1e9, 100_000, 20_000]),
    readPauseBytes: random.pick([1e9, 100_000, 20_000]),
    pauseMsMax: random.pick([1, 5, 20]),
    congestionControl: random.integer(0, 5),
    receiveBytes: random.pick([131_072, 131_072, 30_000, 8_000]),
    timestamps: 1,
    routeMtu: random.pick([1500, 1500, 1400, 1280, 800]),
    offloads: [
      ...["tx", checksum ? "on" : "off"],
      ...offload("tso", checksum ? 0.7 : 0),
      ...offload("gso", 0.7),
    ],
  };
}
