/**
 * One loss of a host, or of its QEMU, under traffic that notices every wrong byte: what the demo shows and
 * what the end-to-end tests assert.
 */
import { closeSync, openSync, readSync } from "node:fs";
import { secondaryDisksCommitted } from "../colo/index.ts";
import { QmpClient } from "../qmp/client.ts";
import { GUEST_BLOCK_BYTES } from "./guest_ports.ts";
import type { Lab } from "./lab.ts";
import { GUEST_IPV4, type HostLetter } from "./network.ts";
import { patternBytes } from "./pattern.ts";
import { LAB_NODES } from "./qemu.ts";
import { LabTraffic } from "./traffic.ts";

export const LOSSES = {
  "primary-host": { host: "a", what: "both", title: "the primary host is lost (agent and QEMU killed)" },
  "secondary-host": { host: "b", what: "both", title: "the secondary host is lost (agent and QEMU killed)" },
  "primary-qemu": { host: "a", what: "qemu", title: "the primary's QEMU dies" },
  "secondary-qemu": { host: "b", what: "qemu", title: "the secondary's QEMU dies" },
} as const satisfies Record<string, { host: HostLetter; what: "qemu" | "both"; title: string }>;
export type LossName = keyof typeof LOSSES;

export interface LossResult {
  loss: LossName;
  survivor: HostLetter;
  /** The one TCP connection with bytes both ways. */
  connection: {
    bytesSent: number;
    bytesReceived: number;
    /** As the client counted them; the connection survived if both are 0. */
    wrongBytes: number;
    reconnects: number;
    longestGapMs: number;
  };
  /** Numbered blocks that the guest had acknowledged, all found on the survivor's disk. */
  disk: { acknowledgedBlocks: number; verifiedBlocks: number };
  /** Answers of a service whose two copies cannot agree, in one unbroken chain. */
  randomAnswers: number;
  /** Checkpoints before the loss, by what asked for them. */
  checkpoints: Record<string, number>;
  /** From the kill until the survivor runs the VM alone. */
  failoverMs: number;
}

interface LossObserver {
  step(text: string): void;
  detail(text: string): void;
}

const TRAFFIC_BYTES_PER_SECOND = 1_000_000;
const RECOVERY_TIMEOUT_MS = 60_000;

/**
 * Runs traffic on a protected lab, loses `loss`, and checks that nothing was lost with it. Wrong bytes and
 * broken connections of the one connection are counted in the result; everything else that is wrong is
 * thrown.
 */
export async function runLoss(
  lab: Lab,
  loss: LossName,
  observer: LossObserver,
  seconds: { before: number; after: number } = { before: 4, after: 4 },
): Promise<LossResult> {
  const { host, what } = LOSSES[loss];
  const survivor: HostLetter = host === "a" ? "b" : "a";
  const show = () => {
    const last = connection.last;
    if (last === undefined) return;
    const mb = (bytes: number) => (bytes / 1e6).toFixed(1);
    observer.detail(
      `one connection: ${mb(last.sent)} MB out, ${mb(last.received)} MB back, ` +
        `longest gap ${Math.round(last.longestGapMs)} ms; ` +
        `${disk.last?.answers ?? 0} blocks on disk, ${random.last?.answers ?? 0} random answers`,
    );
  };
  using connection = new LabTraffic(
    lab,
    "duplex",
    { host: GUEST_IPV4, bytesPerSecond: TRAFFIC_BYTES_PER_SECOND, counting: true },
    show,
  );
  using disk = new LabTraffic(lab, "disk", { host: GUEST_IPV4, pauseMs: 5 });
  using random = new LabTraffic(lab, "random", { host: GUEST_IPV4, pauseMs: 100 });
  observer.step("a client talks to the guest: bytes both ways, durable disk blocks, random answers");
  await connection.until("traffic flows", (report) => report.received > 0, RECOVERY_TIMEOUT_MS);
  await Bun.sleep(seconds.before * 1000);
  await disk.until("blocks are acknowledged", (report) => report.answers > 0, RECOVERY_TIMEOUT_MS);
  const checkpoints = await checkpointCounts(lab);

  observer.step(`kill -9: ${LOSSES[loss].title}`);
  const killed = performance.now();
  await lab.kill(host, what);
  await lab.waitFor(
    `host ${survivor} continues alone`,
    (status) => {
      const about = status[survivor];
      if (about?.phase === "stopped") throw new Error(`host ${survivor} stopped: ${about.reason}`);
      return about?.phase === "alone";
    },
    RECOVERY_TIMEOUT_MS,
  );
  const failoverMs = performance.now() - killed;
  const before = connection.last?.received ?? 0;
  await connection.until(
    "the connection continues",
    (report) => report.received > before,
    RECOVERY_TIMEOUT_MS,
  );
  observer.step(`host ${survivor} has the VM; the connection continues`);
  await Bun.sleep(seconds.after * 1000);

  const ended = await connection.finish();
  const { answers: acknowledgedBlocks } = await disk.finish();
  const { answers: randomAnswers } = await random.finish();
  // What was under way on a connection that broke does not come back.
  if (ended.reconnects === 0 && ended.received !== ended.sent) {
    throw new Error(`${ended.sent} bytes were sent, ${ended.received} came back`);
  }
  observer.step("the survivor's disk is read");
  if (survivor === "b") await waitForCommit(lab, "b");
  const verifiedBlocks = verifyBlocks(lab.host(survivor).disk, acknowledgedBlocks);
  return {
    loss,
    survivor,
    connection: {
      bytesSent: ended.sent,
      bytesReceived: ended.received,
      wrongBytes: ended.wrongBytes,
      reconnects: ended.reconnects,
      longestGapMs: ended.longestGapMs,
    },
    disk: { acknowledgedBlocks, verifiedBlocks },
    randomAnswers,
    checkpoints,
    failoverMs,
  };
}

/** Checkpoints so far by cause, from the primary's metrics. */
export async function checkpointCounts(lab: Lab, letter: HostLetter = "a"): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  for (const match of (await lab.metrics(letter)).matchAll(
    /^colo_checkpoints_total\{.*cause="(\w+)".*\} (\d+)$/gm,
  )) {
    const [, cause, count] = match;
    if (cause !== undefined) counts[cause] = Number(count);
  }
  return counts;
}

/**
 * QEMU writes the new primary's overlays back into its disk file; until then the file alone is not the disk.
 */
export async function waitForCommit(lab: Lab, survivor: HostLetter): Promise<void> {
  const qmp = await QmpClient.connect(lab.host(survivor).qmp);
  try {
    const deadline = performance.now() + RECOVERY_TIMEOUT_MS;
    while (!(await secondaryDisksCommitted(qmp, [LAB_NODES.active]))) {
      if (performance.now() > deadline) throw new Error("QEMU did not commit the overlays to the disk");
      await Bun.sleep(100);
    }
  } finally {
    qmp.close();
  }
}

/**
 * Compares the first `count` blocks of a disk file with what the guest wrote there. Throws at the first wrong
 * one.
 */
export function verifyBlocks(path: string, count: number): number {
  const fd = openSync(path, "r");
  try {
    const block = Buffer.alloc(GUEST_BLOCK_BYTES);
    for (let index = 0; index < count; index++) {
      readSync(fd, block, 0, GUEST_BLOCK_BYTES, index * GUEST_BLOCK_BYTES);
      if (!block.equals(patternBytes(index * GUEST_BLOCK_BYTES, GUEST_BLOCK_BYTES))) {
        throw new Error(
          `block ${index} of ${count} acknowledged ones is not on the survivor's disk (${path})`,
        );
      }
    }
    return count;
  } finally {
    closeSync(fd);
  }
}
