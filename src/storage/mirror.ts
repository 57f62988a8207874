/**
 * The primary's half of disk replication: a full copy to the secondary, then every write sent along. For each
 * disk:
 *
 *   "nbdNode"          NBD client on the secondary's export: target of the copy, then file of the replication
 *   "replicationNode"  replication, mode primary, on top of it, added as a further child of the VM's quorum
 *
 * Names are the caller's; everything here can be called again after a crash of the agent, because it looks at
 * what QEMU has.
 */
import { connect } from "node:net";
import { z } from "zod";
import type { QmpClient } from "../qmp/client.ts";
import { QmpCommandError } from "../qmp/errors.ts";
import { jobs as jobList, type NamedBlockNode, query } from "../qmp/query.ts";
import { type StreamTls, TLS_CREDENTIALS } from "../qmp/tls.ts";
import { blockNodes, messageOf } from "../qmp/vm.ts";
import { dirtyBytes, PASS_BITMAP, removeBitmap } from "./dirty_bitmaps.ts";

export interface PrimaryDisk {
  /** The quorum under the VM's disk device. */
  quorumNode: string;
  /** Names for the nodes that protection adds. */
  replicationNode: string;
  nbdNode: string;
  /** The secondary's export. */
  nbdHost: string;
  nbdPort: number;
  exportName: string;
  /**
   * A dirty bitmap of the quorum that covers all in which the export differs; left out: the whole disk is
   * copied.
   */
  bitmap?: string | undefined;
}

/**
 * How far the copy of one disk is. Bytes that the VM changes meanwhile count again, so `totalBytes` grows.
 */
export interface DiskProgress {
  quorumNode: string;
  copiedBytes: number;
  totalBytes: number;
  /** The copy only follows what the VM writes. */
  follows: boolean;
}

function mirrorJobId(disk: Pick<PrimaryDisk, "nbdNode">): string {
  return `resync-${disk.nbdNode}`;
}

/** The job that copies only what changed (src/storage/changes_copy.ts). */
export function passJobId(disk: Pick<PrimaryDisk, "nbdNode">): string {
  return `changes-${disk.nbdNode}`;
}

/** The first bytes of every NBD server (doc/proto.md of the NBD project, "Newstyle negotiation"). */
const NBD_MAGIC = "NBDMAGIC";

/**
 * Waits for the NBD server's greeting and closes again, outside QEMU. blockdev-add connects inside QEMU's
 * main loop (block/nbd.c, nbd_open): to a host that is gone it stops the VM for the two minutes of a TCP
 * connect, to a server that hangs for as long as that hangs, and seen with 11.1.2 a yank does not end it
 * while it connects.
 */
export function probeNbdServer(host: string, port: number, timeoutMs: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const address = `${host}:${port}`;
    let greeting = "";
    const socket = connect({ host, port });
    const settle = (problem: string | undefined) => {
      clearTimeout(timer);
      socket.destroy();
      if (problem === undefined) resolve();
      else reject(new Error(`${problem}; does the secondary's QEMU run and is ${address} reachable?`));
    };
    const timer = setTimeout(() => settle(`no NBD server at ${address} within ${timeoutMs} ms`), timeoutMs);
    socket.on("data", (chunk: Buffer) => {
      greeting += chunk.toString("latin1");
      if (greeting.startsWith(NBD_MAGIC)) settle(undefined);
      else if (!NBD_MAGIC.startsWith(greeting)) settle(`the program at ${address} is not an NBD server`);
    });
    socket.once("error", (error) => settle(`no connection to ${address}: ${error.message}`));
    socket.once("close", () => settle(`${address} closed the connection`));
  });
}

/** `tls`: setTls() has been called with it. */
export async function addNbdNode(
  client: QmpClient,
  disk: PrimaryDisk,
  timeoutMs: number,
  tls?: StreamTls,
): Promise<void> {
  const server = { type: "inet", host: disk.nbdHost, port: String(disk.nbdPort) };
  await client.execute(
    "blockdev-add",
    {
      driver: "nbd",
      "node-name": disk.nbdNode,
      server,
      export: disk.exportName,
      ...(tls === undefined ? {} : { "tls-creds": TLS_CREDENTIALS, "tls-hostname": tls.peerName }),
    },
    { timeoutMs },
  );
}

/**
 * With less than this to copy, the VM's writes begin to wait for their copies; with a limit, with less than
 * this time.
 */
const NEAR_END_BYTES = 64 * 1024 * 1024;
const NEAR_END_S = 2;
/**
 * How long a copy that is ready may take to say that it follows each write; without it the switch-over takes
 * longer.
 */
const FOLLOW_MS = 2_000;

/** One disk's copy while it runs. */
interface Copy {
  disk: PrimaryDisk;
  leastLeftBytes: number;
  progressMs: number;
  blocking: boolean;
  readyMs: number | undefined;
  /** The limit that QEMU has, in bytes per second; 0: none. */
  speed: number;
  progress: DiskProgress;
}

/**
 * Copies whole disks at the same time while the VM runs, until the copies only follow what the VM writes.
 * Towards the end, and when the VM writes as fast as the link carries, each write waits for its copy: so a
 * copy does end, and little is left to do once the VM stops.
 * @param stallMs a copy without progress for this time is cancelled
 */
export async function copyDisks(
  client: QmpClient,
  disks: readonly PrimaryDisk[],
  {
    stallMs,
    signal,
    bytesPerSecond = () => 0,
    onProgress,
  }: {
    stallMs: number;
    signal: AbortSignal;
    /** For all copies together, 0: no limit. Asked again and again, so it can be changed. */
    bytesPerSecond?: (() => number) | undefined;
    onProgress?: ((progress: readonly DiskProgress[]) => void) | undefined;
  },
): Promise<DiskProgress[]> {
  const copies: Copy[] = [];
  for (const disk of disks) {
    const { quorumNode, nbdNode } = disk;
    await client.execute("blockdev-mirror", {
      "job-id": mirrorJobId(disk),
      device: quorumNode,
      target: nbdNode,
      sync: "full",
      speed: shareOf(bytesPerSecond(), disks.length),
    });
    copies.push({
      disk,
      leastLeftBytes: Number.POSITIVE_INFINITY,
      progressMs: performance.now(),
      blocking: false,
      readyMs: undefined,
      speed: shareOf(bytesPerSecond(), disks.length),
      progress: { quorumNode, copiedBytes: 0, totalBytes: 0, follows: false },
    });
  }
  for (;;) {
    signal.throwIfAborted();
    const jobs = await query(client, blockJobs, "query-block-jobs");
    const share = shareOf(bytesPerSecond(), copies.filter((copy) => copy.readyMs === undefined).length);
    for (const copy of copies) await advance(client, copy, jobs, stallMs, share);
    const progress = copies.map((copy) => copy.progress);
    onProgress?.(progress);
    if (progress.every((one) => one.follows)) return progress;
    const nearEnd = copies.every((copy) => copy.leastLeftBytes < NEAR_END_BYTES);
    await Bun.sleep(nearEnd ? 10 : 100);
  }
}

function shareOf(bytesPerSecond: number, copies: number): number {
  return bytesPerSecond === 0 ? 0 : Math.max(1, Math.floor(bytesPerSecond / Math.max(1, copies)));
}

/** Looks at one copy and does what is due. */
async function advance(
  client: QmpClient,
  copy: Copy,
  jobs: readonly MirrorJob[],
  stallMs: number,
  share: number,
): Promise<void> {
  const { disk } = copy;
  const id = mirrorJobId(disk);
  const job = jobs.find((one) => one.device === id);
  if (job === undefined) {
    throw new Error(
      `the copy of ${disk.quorumNode} ended early: the connection to the secondary's disk was lost`,
    );
  }
  const nowMs = performance.now();
  const leftBytes = job.len - job.offset;
  if (leftBytes < copy.leastLeftBytes) {
    copy.leastLeftBytes = leftBytes;
    copy.progressMs = nowMs;
  }
  const standingMs = nowMs - copy.progressMs;
  // What follows the VM's writes must keep up with them.
  const speed = job.ready ? 0 : share;
  if (speed !== copy.speed) {
    copy.speed = speed;
    await client.execute("block-job-set-speed", { device: id, speed });
  }
  const nearEnd = leftBytes < (share === 0 ? NEAR_END_BYTES : Math.min(NEAR_END_BYTES, NEAR_END_S * share));
  if (!copy.blocking && (job.ready || nearEnd || standingMs > stallMs / 2)) {
    copy.blocking = true;
    await client.execute("block-job-change", { id, type: "mirror", "copy-mode": "write-blocking" });
  } else if (job.ready) {
    copy.readyMs ??= nowMs;
  } else if (standingMs > stallMs) {
    throw new Error(
      `the copy of ${disk.quorumNode} made no progress for ${stallMs} ms, at ${job.offset} of ${job.len} ` +
        "bytes",
    );
  }
  const follows =
    copy.readyMs !== undefined && (job["actively-synced"] === true || nowMs - copy.readyMs > FOLLOW_MS);
  copy.progress = {
    quorumNode: disk.quorumNode,
    copiedBytes: job.offset,
    totalBytes: job.len,
    follows: copy.progress.follows || follows,
  };
}

/** Ends copies that follow, while the VM is stopped: source and target of each are then the same. */
export async function finishCopies(
  client: QmpClient,
  disks: readonly PrimaryDisk[],
  timeoutMs: number,
): Promise<void> {
  const results = await Promise.allSettled(disks.map((disk) => finishCopy(client, disk, timeoutMs)));
  for (const result of results) if (result.status === "rejected") throw result.reason;
}

async function finishCopy(client: QmpClient, disk: PrimaryDisk, timeoutMs: number): Promise<void> {
  const id = mirrorJobId(disk);
  const abort = new AbortController();
  const ended = client.waitFor(
    ["BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"],
    (e) => e.data.device === id,
    timeoutMs,
    {
      signal: abort.signal,
    },
  );
  try {
    // Without force, a mirror that is ready ends with source and target the same (qapi/block-core.json).
    await client.execute("block-job-cancel", { device: id }, { timeoutMs });
    const event = await ended;
    if (event.name !== "BLOCK_JOB_COMPLETED" || event.data.error !== undefined) {
      throw new Error(
        `the copy of ${disk.quorumNode} did not complete: ${String(event.data.error ?? "it was cancelled")}`,
      );
    }
  } finally {
    abort.abort();
  }
}

/** Puts the replication under the quorum: from COLO's start on, writes go to both hosts. */
export async function attachReplication(client: QmpClient, disk: PrimaryDisk): Promise<void> {
  await client.execute("blockdev-add", {
    driver: "replication",
    "node-name": disk.replicationNode,
    mode: "primary",
    file: disk.nbdNode,
  });
  await client.execute("x-blockdev-change", { parent: disk.quorumNode, node: disk.replicationNode });
}

/** Takes the replication out of the quorum, if it is there; writes then go to the local disk only. */
export async function detachReplication(
  client: QmpClient,
  disk: PrimaryDisk,
  timeoutMs: number,
): Promise<void> {
  const child = childName(await blockNodes(client), disk);
  if (child === undefined) return;
  await client.execute("x-blockdev-change", { parent: disk.quorumNode, child }, { timeoutMs });
}

/**
 * Removes jobs and nodes of replications that are detached; what is not there is passed over.
 * @returns sentences on what could not be removed
 */
export async function removeDiskNodes(
  client: QmpClient,
  disks: readonly PrimaryDisk[],
  timeoutMs: number,
): Promise<string[]> {
  const leftovers: string[] = [];
  const ids = new Set(disks.flatMap((disk) => [mirrorJobId(disk), passJobId(disk)]));
  const present = async () => (await query(client, jobList, "query-jobs")).filter(({ id }) => ids.has(id));
  // A job may end by itself between two commands.
  const attempt = (command: string, arguments_: object) =>
    client.execute(command, { ...arguments_ }, { timeoutMs }).catch((error) => {
      if (!(error instanceof QmpCommandError)) throw error;
    });
  try {
    for (const { id, status } of await present()) {
      if (status !== "concluded") await attempt("block-job-cancel", { device: id, force: true });
    }
    const deadlineMs = performance.now() + timeoutMs;
    for (let left = await present(); left.length > 0; left = await present()) {
      for (const { id, status } of left) if (status === "concluded") await attempt("job-dismiss", { id });
      if (performance.now() > deadlineMs) {
        throw new Error(`${left.map(({ id }) => id).join(", ")} still there after ${timeoutMs} ms`);
      }
      await Bun.sleep(5);
    }
    for (const disk of disks) {
      if ((await dirtyBytes(client, disk.quorumNode, PASS_BITMAP)) === undefined) continue;
      await removeBitmap(client, disk.quorumNode, PASS_BITMAP);
    }
  } catch (error) {
    leftovers.push(`block jobs (${messageOf(error)})`);
  }
  for (const node of disks.flatMap((disk) => [disk.replicationNode, disk.nbdNode])) {
    try {
      const isThere = (await blockNodes(client)).some((one) => one["node-name"] === node);
      if (isThere) await client.execute("blockdev-del", { "node-name": node }, { timeoutMs });
    } catch (error) {
      leftovers.push(`block node ${node} (${messageOf(error)})`);
    }
  }
  return leftovers;
}

/** query-block-jobs: the parts that are used here. Offset and length are in bytes. */
const blockJobs = z.array(
  z.object({
    device: z.string(),
    offset: z.number(),
    len: z.number(),
    ready: z.boolean(),
    "actively-synced": z.boolean().optional(),
  }),
);
type MirrorJob = z.output<typeof blockJobs>[number];

/** "children.N": the number grows with each protection, so it has to be looked up. */
function childName(nodes: readonly NamedBlockNode[], disk: PrimaryDisk): string | undefined {
  const quorum = nodes.find((node) => node["node-name"] === disk.quorumNode);
  return quorum?.children?.find((child) => child["node-name"] === disk.replicationNode)?.child;
}
