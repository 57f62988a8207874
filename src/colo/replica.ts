/** COLO procedures on the secondary host's QEMU, which was started with `-incoming defer`. */
import { bracketed } from "../host/endpoint.ts";
import type { QmpClient, QmpEvent } from "../qmp/client.ts";
import { removeTls, type StreamTls, setTls, TLS_CREDENTIALS, TLS_PEER } from "../qmp/tls.ts";
import {
  blockNodes,
  COLO_CAPABILITIES,
  ColoProcedureError,
  coloMode,
  messageOf,
  runStatus,
  setCapabilities,
  yank,
} from "../qmp/vm.ts";

/** One NBD server with an export for each disk. */
export interface NbdServer {
  /** Address and port for the primary's writes; the primary's QEMU connects to it. */
  host: string;
  port: number;
  exports: readonly {
    /** What the primary asks for. */
    name: string;
    /** The secondary's own disk, below the replication node: what is exported. */
    node: string;
  }[];
}

export interface PrepareSecondaryOptions {
  /** Left out for a VM without a disk. */
  nbd?: NbdServer | undefined;
  migrateHost: string;
  migratePort: number;
  /** Only the peer it names may connect, and only with TLS. */
  tls?: StreamTls | undefined;
}

/**
 * Opens the secondary for a primary: the disks' NBD exports first, since replication must find it, then the
 * migration port. On an error nothing stays open. If it was the migration port, this QEMU takes no other one
 * and has to be started afresh (seen with 11.1.2: "Illegal migration incoming state").
 * @throws ColoProcedureError
 */
export async function prepareSecondary(client: QmpClient, options: PrepareSecondaryOptions): Promise<void> {
  const { nbd, migrateHost, migratePort, tls } = options;
  let step = "query-status";
  let serving = false;
  try {
    const { status } = await runStatus(client);
    if (status !== "inmigrate") {
      throw new Error(
        `this QEMU is in state ${status}; a secondary has to be started afresh with -incoming defer`,
      );
    }
    step = "Setting the migration capabilities";
    await setCapabilities(client, COLO_CAPABILITIES, true);
    step = "Setting up TLS";
    await setTls(client, "server", tls);
    if (nbd !== undefined) {
      step = "Starting the NBD server";
      await client.execute("nbd-server-start", {
        addr: { type: "inet", data: { host: nbd.host, port: String(nbd.port) } },
        ...(tls === undefined ? {} : { "tls-creds": TLS_CREDENTIALS, "tls-authz": TLS_PEER }),
      });
      serving = true;
      for (const [index, { name, node }] of nbd.exports.entries()) {
        step = `Exporting the disk ${node}`;
        await client.execute("block-export-add", {
          type: "nbd",
          id: `colo-export${index}`,
          "node-name": node,
          name,
          writable: true,
        });
      }
    }
    step = "Opening the migration port";
    await client.execute("migrate-incoming", {
      uri: `tcp:${bracketed(migrateHost)}:${migratePort}`,
    });
  } catch (error) {
    const leftovers: string[] = [];
    if (serving) {
      await client
        .execute("nbd-server-stop")
        .catch((e) => leftovers.push(`the NBD server still runs (${messageOf(e)})`));
    }
    await removeTls(client).catch((e) => leftovers.push(`TLS is set up (${messageOf(e)})`));
    throw new ColoProcedureError(step, error, leftovers);
  }
}

export interface SecondaryFailover {
  /** The VM was stopped for a checkpoint when the failover began. */
  checkpointInProgress: boolean;
  /**
   * That checkpoint's state was loaded: the VM continues from the primary's state at its STOP. False: it
   * continues from its own state, as without the checkpoint.
   */
  loadedPending: boolean;
  /** QEMU's wall clock of the RESUME that ended the failover. */
  resumedTimestampNs: bigint;
  durationMs: number;
}

/**
 * Makes the secondary VM an ordinary one, running alone. Call it only after the arbiter has said so.
 *
 * The order matters when the primary hangs instead of having died: QEMU loads a checkpoint's memory with its
 * big lock held (migration/colo.c), so a primary that stops sending in the middle blocks the main loop, and
 * only the out-of-band yank gets through. Part of a checkpoint is never used: memory lies in a cache until
 * all of it is there.
 *
 * Afterwards QEMU writes the overlays back into the disk files by itself; see secondaryDisksCommitted.
 * Credentials of TLS stay until removeTls().
 * @throws ColoProcedureError; the VM may then be stopped, and calling again is safe
 */
export async function secondaryFailover(
  client: QmpClient,
  { disks = true, timeoutMs = 10_000 }: { disks?: boolean; timeoutMs?: number } = {},
): Promise<SecondaryFailover> {
  const startMs = performance.now();
  const run: QmpEvent[] = [];
  const ends = ["STOP", "RESUME"].map((name) => client.on(name, (event) => run.push(event)));
  const abort = new AbortController();
  const completed = client.waitFor("MIGRATION", (event) => event.data.status === "completed", timeoutMs, {
    signal: abort.signal,
  });
  let step = "Cutting the connection to the primary";
  try {
    await yank(client, [{ type: "migration" }]);
    step = "query-status";
    const { running } = await runStatus(client);
    // The first event since the beginning tells what was before it; without one the answer does.
    const wasRunning = run.length === 0 ? running : run[0]?.name === "STOP";
    if (disks) {
      step = "Stopping the NBD server";
      await client.execute("nbd-server-stop", undefined, { timeoutMs }).catch(ignoreNotRunning);
    }
    step = "x-colo-lost-heartbeat";
    await client.execute("x-colo-lost-heartbeat", undefined, { timeoutMs });
    step = "Waiting for the end of the failover";
    await completed;
    // QEMU stops a VM that runs (migration/colo-failover.c), so on a VM that stood still at first, a STOP
    // means that it had been resumed since: on a secondary that happens only once the checkpoint's state has
    // been loaded.
    const loadedPending = !wasRunning && run.some((event) => event.name === "STOP");
    // MIGRATION completed and the last RESUME come in either order.
    if (run.at(-1)?.name !== "RESUME") await client.waitFor("RESUME", () => true, timeoutMs);
    return {
      checkpointInProgress: !wasRunning,
      loadedPending,
      resumedTimestampNs: run.at(-1)?.timestampNs ?? -1n,
      durationMs: performance.now() - startMs,
    };
  } catch (error) {
    throw new ColoProcedureError(step, error);
  } finally {
    abort.abort();
    for (const end of ends) end();
  }
}

/**
 * Stops a replica that can never become the VM: seen with 7.2, 10.0 and whenever COLO ends with an error, a
 * secondary continues to run by itself. This QEMU cannot be used again. Does nothing to a VM that is not a
 * replica.
 * @returns whether it was one
 */
export async function endReplica(client: QmpClient, timeoutMs = 5_000): Promise<boolean> {
  if ((await coloMode(client)) !== "secondary") return false;
  await yank(client, [{ type: "migration" }], timeoutMs);
  await client.execute("nbd-server-stop", undefined, { timeoutMs }).catch(ignoreNotRunning);
  await client.execute("stop", undefined, { timeoutMs });
  return true;
}

/**
 * Whether the disk files of a VM that has taken over are complete, so that the overlays are no longer needed:
 * QEMU drops the overlay nodes when it has committed them (block/replication.c).
 */
export async function secondaryDisksCommitted(
  client: QmpClient,
  activeNodes: readonly string[],
): Promise<boolean> {
  const names = new Set((await blockNodes(client)).map((node) => node["node-name"]));
  return !activeNodes.some((node) => names.has(node));
}

/**
 * QEMU's own defaults (DEFAULT_MIGRATE_ANNOUNCE_*, migration/options.c): the delay before the first
 * announcement, the longest and its growth with each, in ms.
 */
const ANNOUNCEMENTS = { initial: 50, max: 550, rounds: 5, step: 100 };

/** Makes QEMU tell the switches where the VM's MAC now lives (RARP frames, or the guest's own driver). */
export async function announceSelf(client: QmpClient): Promise<void> {
  await client.execute("announce-self", ANNOUNCEMENTS);
}

function ignoreNotRunning(error: unknown): void {
  if (!/not running/i.test(messageOf(error))) throw error;
}
