/**
 * COLO procedures on the primary host's QEMU: from a VM that runs alone to a protected one, and back.
 *
 * Protecting a running VM, with the VM stopped only from 5 to 8:
 *
 *   1  NBD clients to the secondary's exports      5  switch-over: VM stopped, onStopped()
 *   2  copy the disks, then follow their writes    6  end the copies (disks are equal), attach replication
 *   3  capabilities, parameters                    7  migrate-continue
 *   4  migrate: memory, while the VM runs          8  MIGRATION colo, first RESUME
 *
 * The pause at 5 is QEMU's `pause-before-switchover`; seen with 11.1.2: it happens once, not at each
 * checkpoint.
 */

import { bracketed, type Endpoint } from "../host/endpoint.ts";
import type { QmpClient, QmpEvent } from "../qmp/client.ts";
import { QmpAbortedError, QmpCommandError } from "../qmp/errors.ts";
import type { YankInstance } from "../qmp/query.ts";
import { explainClosed, removeTls, type StreamTls, setTls } from "../qmp/tls.ts";
import {
  CHECKPOINT_DELAY_NEVER_MS,
  COLO_CAPABILITIES,
  ColoProcedureError,
  MIGRATION_ENDED,
  type MigrationStatus,
  messageOf,
  migrationStatus,
  orAborted,
  runStatus,
  setCapabilities,
  yank,
} from "../qmp/vm.ts";
import { DiskCopies } from "../storage/disk_copies.ts";
import {
  addNbdNode,
  attachReplication,
  type DiskProgress,
  detachReplication,
  type PrimaryDisk,
  probeNbdServer,
  removeDiskNodes,
} from "../storage/mirror.ts";
import { severConnections } from "./sever.ts";

/** Nothing is capped: 10 TB/s. QEMU's own default is 128 MiB/s. */
const BANDWIDTH_UNLIMITED_BYTES = 10 ** 13;
/** The most that QEMU takes (its MAX_MIGRATE_DOWNTIME), in ms: the migration switches over at once. */
const DOWNTIME_LIMIT_MAX_MS = 2_000_000;
const POLL_MS = 100;
/** A VM that does not resume by itself gets `cont` after so many looks; at last the attempt fails. */
const RESUME_LOOKS = { beforeCont: 20, atMost: 40, everyMs: 25 };
/** A main loop that is silent for longer after a yank hangs. */
const ANSWER_MS = 1_000;

export interface ProtectionOptions {
  /** Default: a VM without a disk. */
  disks?: readonly PrimaryDisk[];
  /** Where the secondary's QEMU listens for the migration. */
  migrateHost: string;
  migratePort: number;
  /** The secondary has to ask for it too. */
  tls?: StreamTls | undefined;
  /** The longest pause QEMU aims at for the switch-over. Default 300. */
  downtimeMs?: number;
  /**
   * If the VM dirties memory faster than the link carries it, the switch-over is forced after this long.
   * Default 60 000.
   */
  convergeMs?: number;
  /** A disk copy or a memory transfer without progress is given up after this long. Default 10 000. */
  stallMs?: number;
  /** From the VM's stop to its RESUME in COLO. Default 30 000. */
  switchoverMs?: number;
  /** For single commands. Default 5 000. */
  commandMs?: number;
  /** For the NBD server's greeting, before QEMU connects to it. Default 2 000. */
  probeMs?: number;
  /** Limit of all disk copies together, asked again and again; 0, the default: none. */
  resyncBytesPerSecond?: (() => number) | undefined;
  /** Gives up, and undoes everything; e.g. when the peer's heartbeat is lost. */
  signal?: AbortSignal;
}

export interface ProtectionHooks {
  /** A step begins. */
  onStep?: (step: string) => void;
  /** One entry a disk. */
  onDiskProgress?: (progress: readonly DiskProgress[]) => void;
  onMemoryProgress?: (progress: { transferredBytes: number; remainingBytes: number }) => void;
  /**
   * The VM is stopped for the switch-over and sends nothing: the data plane's moment to change from alone to
   * protected. If protection fails after this, onUndo() is called.
   */
  onStopped?: () => Promise<void>;
  /**
   * Protection failed after onStopped(): switch the data plane back. The VM is about to run alone again, or
   * does already.
   */
  onUndo?: () => Promise<void>;
}

export interface Protection {
  /** QEMU's wall clock of the switch-over's STOP and of the RESUME in COLO. */
  stoppedTimestampNs: bigint;
  resumedTimestampNs: bigint;
  pauseMs: number;
  diskBytes: number;
  memoryBytes: number;
}

/**
 * Protects a running VM; prepareSecondary() has to have been done. On any failure the VM runs on alone, with
 * everything that was added removed, so that it can be tried again (the secondary's QEMU has to be started
 * afresh). Before calling the VM protected, run two checkpoints: the first ones copy nearly all memory.
 * @throws ColoProcedureError
 */
export async function startProtection(
  client: QmpClient,
  options: ProtectionOptions,
  hooks: ProtectionHooks = {},
): Promise<Protection> {
  const { disks = [], migrateHost, migratePort, tls } = options;
  const { downtimeMs = 300, convergeMs = 60_000, stallMs = 10_000, switchoverMs = 30_000 } = options;
  const { commandMs = 5_000, probeMs = 2_000, signal = new AbortController().signal } = options;
  let step = "";
  let stoppedHookRan = false;
  const enter = (name: string) => {
    signal.throwIfAborted();
    step = name;
    hooks.onStep?.(name);
  };

  try {
    enter("Checking the VM's state");
    await checkStartable(client);
  } catch (error) {
    throw new ColoProcedureError(step, error); // nothing has been touched
  }
  const abort = new AbortController();
  const both = AbortSignal.any([signal, abort.signal]);
  const copies = new DiskCopies(client, disks, {
    stallMs,
    signal,
    bytesPerSecond: options.resyncBytesPerSecond ?? (() => 0),
  });
  try {
    if (tls !== undefined) enter("Setting up TLS");
    await setTls(client, "client", tls);
    if (disks.length > 0) {
      enter("Reaching the secondary's disks");
      await probeNbdServers(disks, probeMs);
      for (const disk of disks) await addNbdNode(client, disk, commandMs, tls);
      enter("Copying the disks");
      await copies.run(hooks.onDiskProgress);
    }

    enter("Copying the memory");
    await setCapabilities(client, [...COLO_CAPABILITIES, "pause-before-switchover"], true);
    await client.execute("migrate-set-parameters", {
      "x-checkpoint-delay": CHECKPOINT_DELAY_NEVER_MS,
      "max-bandwidth": BANDWIDTH_UNLIMITED_BYTES,
      "downtime-limit": downtimeMs,
    });
    const host = bracketed(migrateHost);
    let stopped: QmpEvent | undefined;
    const endStop = client.on("STOP", (event) => {
      stopped = event;
    });
    let memoryBytes: number;
    try {
      await client.execute("migrate", { uri: `tcp:${host}:${migratePort}` });
      memoryBytes = await untilSwitchover(client, {
        convergeMs,
        stallMs,
        signal,
        hooks,
        onFlowing: () => copies.keepUp(),
      });
    } finally {
      endStop();
    }

    // The VM stands still from here on.
    const switchoverEndMs = performance.now() + switchoverMs;
    const left = () => Math.max(1, switchoverEndMs - performance.now());
    enter("Switching the data plane");
    stoppedHookRan = true;
    await hooks.onStopped?.();
    signal.throwIfAborted();
    if (disks.length > 0) {
      enter("Completing the disk copy");
      await orAborted(copies.finish(left()), signal);
      enter("Attaching the disk replication");
      for (const disk of disks) await orAborted(attachReplication(client, disk), signal);
    }

    enter("Entering COLO");
    let inColo = false;
    const outcome = client.waitFor(
      ["MIGRATION", "COLO_EXIT"],
      (event) => {
        inColo ||= event.data.status === "colo";
        return inColo || event.name === "COLO_EXIT" || MIGRATION_ENDED.has(String(event.data.status));
      },
      left(),
      { signal: both },
    );
    const resumed = client.waitFor("RESUME", () => inColo, left(), { signal: both });
    const exited = client.waitFor("COLO_EXIT", () => true, left(), { signal: both });
    await client.execute("migrate-continue", { state: "pre-switchover" });
    const { name, data } = await outcome;
    if (!inColo) throw await migrationError(client, name === "COLO_EXIT" ? "COLO_EXIT" : String(data.status));
    const first = await Promise.race([resumed, exited]);
    if (first.name === "COLO_EXIT")
      throw new Error("COLO ended before the VM ran in it; see the secondary's QEMU log");
    const stoppedTimestampNs = stopped?.timestampNs ?? first.timestampNs;
    return {
      stoppedTimestampNs,
      resumedTimestampNs: first.timestampNs,
      pauseMs: Number(first.timestampNs - stoppedTimestampNs) / 1e6,
      diskBytes: copies.copiedBytes,
      memoryBytes,
    };
  } catch (error) {
    copies.abandon();
    const leftovers = await undoProtection(client, disks, {
      commandMs,
      peer: [
        { host: migrateHost, port: migratePort },
        ...disks.map(({ nbdHost, nbdPort }) => ({ host: nbdHost, port: nbdPort })),
      ],
      beforeResume: stoppedHookRan ? hooks.onUndo : undefined,
    });
    const cause = explainClosed(error, tls !== undefined);
    throw new ColoProcedureError(step, signal.aborted ? abortReason(signal) : cause, leftovers);
  } finally {
    abort.abort();
  }
}

/**
 * Asks for a checkpoint; QEMU stops the VM about a millisecond later. Setting the parameter starts one
 * whatever its value is (migration/options.c), and keeps the timer off. Allowed only after startProtection()
 * has returned: earlier QEMU can abort. A request that comes while a checkpoint runs may be lost, so wait for
 * the RESUME and ask again.
 */
export async function requestCheckpoint(client: QmpClient, timeoutMs?: number): Promise<void> {
  const options = timeoutMs === undefined ? {} : { timeoutMs };
  await client.execute(
    "migrate-set-parameters",
    { "x-checkpoint-delay": CHECKPOINT_DELAY_NEVER_MS },
    options,
  );
}

export interface PrimaryFailover {
  /** The VM was stopped (for a checkpoint, or by the hung peer) when the failover began. */
  wasStopped: boolean;
  durationMs: number;
  /** Sentences: nodes that could not be removed. The VM runs all the same. */
  leftovers: readonly string[];
}

/**
 * Lets the primary VM run alone: dead, hung and healthy secondaries are all cut off, and a migration that has
 * not got as far as COLO is given up. Call it only after the arbiter has said so. Can be called again, and on
 * a VM that is not protected any more.
 *
 * Order: the connections are cut out of band first, since QEMU's main loop may hang on the secondary's disk,
 * or would do so in the next step; then the disk, then COLO itself.
 * @throws ColoProcedureError if the VM does not run afterwards
 */
export async function primaryFailover(
  client: QmpClient,
  { disks = [], timeoutMs = 10_000 }: { disks?: readonly PrimaryDisk[]; timeoutMs?: number } = {},
): Promise<PrimaryFailover> {
  const startMs = performance.now();
  let step = "Cutting the connections to the secondary";
  try {
    await yank(client, connections(disks));
    step = "query-status";
    const wasStopped = !(await runStatus(client)).running;
    step = "Detaching the disk replication";
    for (const disk of disks) await detachReplication(client, disk, timeoutMs);
    // An agent that died between the migration's last pass and COLO has left it there, with the VM stopped.
    step = "Leaving COLO";
    await endMigration(client, timeoutMs);
    step = "Resuming the VM";
    await ensureRunning(client);
    const leftovers = await removeTraces(client, disks, timeoutMs);
    return { wasStopped, durationMs: performance.now() - startMs, leftovers };
  } catch (error) {
    throw new ColoProcedureError(step, error);
  }
}

/**
 * Takes away what an agent that died while it protected a VM has left in a QEMU that runs no migration (any
 * more): copies, connections, nodes, capabilities, TLS. The VM itself is not touched, and what is not there
 * is passed over.
 * @returns sentences on what could not be removed
 * @throws QmpError if QEMU does not answer, or a replication cannot be detached
 */
export async function clearProtection(
  client: QmpClient,
  disks: readonly PrimaryDisk[],
  timeoutMs = 5_000,
): Promise<string[]> {
  await yank(client, connections(disks));
  for (const disk of disks) await detachReplication(client, disk, timeoutMs);
  return removeTraces(client, disks, timeoutMs);
}

/**
 * What is left of a protection once replication and migration are gone: nodes, capabilities, TLS.
 * @returns sentences on what could not be removed
 */
async function removeTraces(
  client: QmpClient,
  disks: readonly PrimaryDisk[],
  timeoutMs: number,
): Promise<string[]> {
  const leftovers = await removeDiskNodes(client, disks, timeoutMs);
  const attempt = (what: string, action: Promise<void>) =>
    action.catch((error) => leftovers.push(`${what} (${messageOf(error)})`));
  await attempt("the migration capabilities are set", resetCapabilities(client));
  await attempt("TLS is set up", removeTls(client, timeoutMs));
  return leftovers;
}

/** All connections to the secondary. */
export function connections(disks: readonly Pick<PrimaryDisk, "nbdNode">[]): YankInstance[] {
  return [
    ...disks.map(({ nbdNode }): YankInstance => ({ type: "block-node", "node-name": nbdNode })),
    { type: "migration" },
  ];
}

async function probeNbdServers(disks: readonly PrimaryDisk[], timeoutMs: number): Promise<void> {
  const servers = new Map(disks.map((disk) => [`${disk.nbdHost} ${disk.nbdPort}`, disk]));
  for (const { nbdHost, nbdPort } of servers.values()) await probeNbdServer(nbdHost, nbdPort, timeoutMs);
}

async function checkStartable(client: QmpClient): Promise<void> {
  const [run, migration] = await Promise.all([runStatus(client), migrationStatus(client)]);
  if (!run.running) throw new Error(`the VM has to run, but is in state ${run.status}`);
  if (!MIGRATION_ENDED.has(migration.status)) {
    throw new Error(`a migration is in state ${migration.status}; end it first (COLO: primaryFailover)`);
  }
}

/** @returns bytes of memory sent */
async function untilSwitchover(
  client: QmpClient,
  o: {
    convergeMs: number;
    stallMs: number;
    signal: AbortSignal;
    hooks: ProtectionHooks;
    /** The migration's first bytes are sent. */
    onFlowing: () => void;
  },
): Promise<number> {
  const startMs = performance.now();
  let lastChangeMs = startMs;
  let last: MigrationStatus | undefined;
  let forced = false;
  for (;;) {
    o.signal.throwIfAborted();
    const now = await migrationStatus(client);
    if (now.status === "pre-switchover") return now.transferredBytes;
    if (MIGRATION_ENDED.has(now.status)) {
      throw new Error(
        now.errorDescription ?? `the migration ended in state ${now.status} instead of entering COLO`,
      );
    }
    if (now.status === "active" && last?.status !== "active") o.onFlowing();
    o.hooks.onMemoryProgress?.(now);
    if (now.transferredBytes !== last?.transferredBytes || now.status !== last.status)
      lastChangeMs = performance.now();
    if (performance.now() - lastChangeMs > o.stallMs) {
      throw new Error(`no memory was transferred for ${o.stallMs} ms (state ${now.status})`);
    }
    if (!forced && performance.now() - startMs > o.convergeMs) {
      forced = true;
      await client.execute("migrate-set-parameters", { "downtime-limit": DOWNTIME_LIMIT_MAX_MS });
    }
    last = now;
    await untilEventOr(client, "MIGRATION", POLL_MS);
  }
}

/** Returns at the event, or after `ms`. */
async function untilEventOr(client: QmpClient, name: string, ms: number): Promise<void> {
  // Late or closed: the caller looks again, and its next command fails if QEMU is gone.
  await client.waitFor(name, () => true, ms).catch(() => undefined);
}

async function migrationError(client: QmpClient, state: string): Promise<Error> {
  const { errorDescription } = await migrationStatus(client);
  return new Error(errorDescription ?? `the migration ended (${state}) instead of entering COLO`);
}

function abortReason(signal: AbortSignal): unknown {
  return signal.reason instanceof Error ? signal.reason : new QmpAbortedError("it was cancelled on request");
}

/**
 * Brings a QEMU whose protection failed at any step, or was cut short by a crash of the agent, back to a VM
 * running alone. Each step is tried whatever became of the one before.
 * @returns sentences on what could not be undone; empty if all is as before
 */
export async function undoProtection(
  client: QmpClient,
  disks: readonly PrimaryDisk[],
  {
    commandMs = 5_000,
    peer = [],
    beforeResume,
  }: {
    commandMs?: number;
    /**
     * Where the secondary's QEMU listens: its connections are cut from outside if QEMU's main loop hangs on
     * them all the same.
     */
    peer?: readonly Endpoint[];
    beforeResume?: (() => Promise<void>) | undefined;
  } = {},
): Promise<string[]> {
  const leftovers: string[] = [];
  const attempt = async (what: string, action: () => Promise<unknown>) => {
    try {
      await action();
    } catch (error) {
      leftovers.push(`${what} (${messageOf(error)})`);
    }
  };
  await attempt("the data plane was not switched back", async () => beforeResume?.());
  await attempt("the connections to the secondary are open", () =>
    yank(client, connections(disks), commandMs),
  );
  // Seen with 11.1.2: a TLS handshake with a QEMU that hangs blocks the main loop, and a yank does not end
  // it.
  if (peer.length > 0 && !(await answers(client))) {
    await attempt("the connections to the secondary are open", () => severConnections(peer));
  }
  try {
    await runStatus(client);
  } catch (error) {
    // Each further step would only run into its own time limit.
    return [...leftovers, `QEMU does not answer, nothing could be undone (${messageOf(error)})`];
  }
  for (const disk of disks) {
    await attempt(`the replication of ${disk.quorumNode} is attached`, () =>
      detachReplication(client, disk, commandMs),
    );
  }
  await attempt("the migration runs", () => endMigration(client, commandMs));
  await attempt("the VM is stopped", () => ensureRunning(client));
  return [...leftovers, ...(await removeTraces(client, disks, commandMs))];
}

/** Whether QEMU's main loop runs. */
async function answers(client: QmpClient): Promise<boolean> {
  return client.execute("query-status", undefined, { timeoutMs: ANSWER_MS }).then(
    () => true,
    () => false,
  );
}

async function endMigration(client: QmpClient, timeoutMs: number): Promise<void> {
  const { status } = await migrationStatus(client);
  if (MIGRATION_ENDED.has(status)) return;
  if (status === "colo") return leaveColo(client, timeoutMs);
  await client.execute("migrate_cancel", undefined, { timeoutMs });
  const deadlineMs = performance.now() + timeoutMs;
  for (;;) {
    const now = await migrationStatus(client);
    if (MIGRATION_ENDED.has(now.status)) return;
    // The cancel came too late.
    if (now.status === "colo") return leaveColo(client, timeoutMs);
    if (performance.now() > deadlineMs) throw new Error(`it is still in state ${now.status}`);
    await untilEventOr(client, "MIGRATION", 50);
  }
}

/** Ends COLO if the VM is in it; returns when QEMU says so. */
async function leaveColo(client: QmpClient, timeoutMs: number): Promise<void> {
  const abort = new AbortController();
  const completed = client.waitFor("MIGRATION", (event) => event.data.status === "completed", timeoutMs, {
    signal: abort.signal,
  });
  try {
    if ((await migrationStatus(client)).status !== "colo") return;
    try {
      await client.execute("x-colo-lost-heartbeat", undefined, { timeoutMs });
    } catch (error) {
      // "already activated": an earlier call whose end was not waited for.
      if (!(error instanceof QmpCommandError) || (await migrationStatus(client)).status === "colo") {
        if (!/already/i.test(messageOf(error))) throw error;
      }
    }
    await completed;
  } finally {
    abort.abort();
  }
}

/**
 * QEMU resumes the VM by itself when a migration or COLO ends; this waits a moment for it and helps if it
 * does not.
 */
async function ensureRunning(client: QmpClient): Promise<void> {
  for (let tries = 0; ; tries++) {
    const { running, status } = await runStatus(client);
    if (running) return;
    if (tries === RESUME_LOOKS.beforeCont) await client.execute("cont");
    if (tries === RESUME_LOOKS.atMost) throw new Error(`it is in state ${status}`);
    await untilEventOr(client, "RESUME", RESUME_LOOKS.everyMs);
  }
}

async function resetCapabilities(client: QmpClient): Promise<void> {
  await setCapabilities(client, ["x-colo", "return-path", "pause-before-switchover"], false);
}
