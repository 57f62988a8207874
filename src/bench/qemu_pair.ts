/**
 * Two QEMUs in COLO without agents, on the lab's network: what the agents are measured against. COLO is
 * entered as QEMU's document does it, with QEMU's own parameters and ordinary routes.
 */
import { existsSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { prepareSecondary } from "../colo/index.ts";
import { guestKernel, qemuArgv, qemuEnvironment, qemuImgArgv } from "../host/installed.ts";
import { ipIn } from "../host/ip.ts";
import { guestCommandLine, guestInitrd, guestReadyPattern } from "../lab/assets.ts";
import {
  createNetwork,
  GUEST_IPV4,
  GUEST_IPV6,
  GUEST_MAC,
  HOST_ADDRESSES,
  type HostLetter,
  type LabNamespaces,
  namespacesOf,
  removeNetwork,
  TAP,
} from "../lab/network.ts";
import { LAB_NODES, type LabQemu, labDisk, startLabQemu } from "../lab/qemu.ts";
import { endProcess, identify, isAlive, type ProcessIdentity } from "../qemu/process.ts";
import { QmpClient } from "../qmp/client.ts";
import { chardevInfo, query } from "../qmp/query.ts";
import { COLO_CAPABILITIES, MIGRATION_ENDED, migrationStatus, setCapabilities } from "../qmp/vm.ts";
import { addNbdNode, attachReplication, type PrimaryDisk } from "../storage/mirror.ts";
import { primaryProxyArguments, secondaryProxyArguments } from "./qemu_proxy.ts";

const ROOT = "/run/colo-agent-bench";
const DISK_BYTES = 64 << 20;
const NBD_PORT = 9999;
const MIGRATE_PORT = 9998;
const EXPORT_NAME = "parent0";
const BOOT_TIMEOUT_MS = 60_000;
const ENTER_TIMEOUT_MS = 60_000;
const COMMAND_TIMEOUT_MS = 5_000;
const CONNECT_TIMEOUT_MS = 10_000;

interface QemuPairOptions {
  /** As a lab's name; see {@link namespacesOf}. */
  name: string;
  memoryMib: number;
  /** More of the guest's command line. */
  append?: string;
  /** Compare packets with QEMU's own proxy; without it the secondary is cut off from the network. */
  proxy: boolean;
  /** QEMU's timer for checkpoints. Its own default is 20 000. */
  checkpointDelayMs?: number;
}

export class QemuPair {
  readonly namespaces: LabNamespaces;
  readonly #processes: Partial<Record<HostLetter, ProcessIdentity>> = {};
  readonly #qemus: Partial<Record<HostLetter, LabQemu>> = {};
  readonly #clients: QmpClient[] = [];

  readonly #options: QemuPairOptions;

  private constructor(options: QemuPairOptions) {
    this.#options = options;
    this.namespaces = namespacesOf(options.name);
  }

  /** Returns when the VM runs in COLO. On an error all is taken down. */
  static async up(options: QemuPairOptions, progress: (step: string) => void): Promise<QemuPair> {
    const pair = new QemuPair(options);
    mkdirSync(directoryOf(options.name), { recursive: true, mode: 0o700 });
    try {
      progress("network");
      const { b } = await createNetwork(options.name);
      // What the bridge floods would reach the SVM beside the mirrored frames.
      await ipIn(b)("link", "set", TAP, "nomaster");
      progress("QEMU on both hosts, guest boots");
      await pair.#startQemus();
      await pair.#waitForGuest();
      progress("entering COLO");
      await pair.#enterColo();
      return pair;
    } catch (error) {
      pair.#closeClients();
      await QemuPair.down(options.name);
      throw error;
    }
  }

  /** Takes a pair down, also what a crash left of it. */
  static async down(name: string): Promise<void> {
    const directory = directoryOf(name);
    const state = join(directory, "processes.json");
    if (existsSync(state)) {
      const processes = JSON.parse(readFileSync(state, "utf8")) as ProcessIdentity[];
      for (const process of processes) await endProcess(process);
    }
    await removeNetwork(name);
    rmSync(directory, { recursive: true, force: true });
  }

  async down(): Promise<void> {
    this.#closeClients();
    await QemuPair.down(this.#options.name);
  }

  pid(letter: HostLetter): number {
    return this.#processes[letter]!.pid;
  }

  /** A QMP socket that nobody is connected to. */
  spareQmp(letter: HostLetter): string {
    return this.#qemus[letter]!.qmpSpare;
  }

  /** Both QEMUs run. */
  get alive(): boolean {
    return Object.values(this.#processes).every(isAlive);
  }

  async #startQemus(): Promise<void> {
    const { name, memoryMib, append, proxy } = this.#options;
    for (const letter of ["a", "b"] as const) {
      const directory = join(directoryOf(name), letter);
      const diskPath = join(directory, "disk.raw");
      mkdirSync(directory, { recursive: true });
      writeFileSync(diskPath, "");
      truncateSync(diskPath, DISK_BYTES);
      const { replication } = HOST_ADDRESSES.a;
      const proxyArguments =
        letter === "a" ? primaryProxyArguments(replication) : secondaryProxyArguments(replication);
      const qemu = await startLabQemu({
        role: letter === "a" ? "primary" : "secondary",
        directory,
        qemuArgv: qemuArgv(),
        qemuImgArgv: qemuImgArgv(),
        environment: qemuEnvironment(),
        memoryMib,
        kernel: guestKernel(),
        initrd: guestInitrd(),
        append: guestCommandLine({ ip4: `${GUEST_IPV4}/24`, ip6: `${GUEST_IPV6}/64` }, append),
        disks: [labDisk(diskPath)],
        network: { tap: TAP, mac: GUEST_MAC },
        netns: this.namespaces[letter],
        name: `${name}-${letter}`,
        extraArguments: proxy ? proxyArguments : [],
      });
      this.#qemus[letter] = qemu;
      this.#processes[letter] = identify(qemu.pid);
      const state = JSON.stringify(Object.values(this.#processes));
      writeFileSync(join(directoryOf(name), "processes.json"), state);
    }
  }

  async #waitForGuest(): Promise<void> {
    const { serial, log } = this.#qemus.a!;
    const deadline = performance.now() + BOOT_TIMEOUT_MS;
    while (!(existsSync(serial) && guestReadyPattern.test(readFileSync(serial, "latin1")))) {
      if (!this.alive) throw new Error(`a QEMU ended while the guest booted; ${log}: ${tail(log)}`);
      if (performance.now() > deadline) throw new Error(`the guest did not boot; ${serial}: ${tail(serial)}`);
      await Bun.sleep(50);
    }
  }

  async #enterColo(): Promise<void> {
    const [primary, secondary] = await Promise.all([
      QmpClient.connect(this.#qemus.a!.qmp),
      QmpClient.connect(this.#qemus.b!.qmp),
    ]);
    this.#clients.push(primary, secondary);
    const { replication: host } = HOST_ADDRESSES.b;
    const disk: PrimaryDisk = {
      quorumNode: LAB_NODES.quorum,
      replicationNode: "replication0",
      nbdNode: "nbd0",
      nbdHost: host,
      nbdPort: NBD_PORT,
      exportName: EXPORT_NAME,
    };
    if (this.#options.proxy) await proxyConnected(primary);
    await prepareSecondary(secondary, {
      nbd: { host, port: NBD_PORT, exports: [{ name: EXPORT_NAME, node: LAB_NODES.disk }] },
      migrateHost: host,
      migratePort: MIGRATE_PORT,
    });
    // Both disks are new and empty: there is nothing to copy.
    await addNbdNode(primary, disk, COMMAND_TIMEOUT_MS);
    await attachReplication(primary, disk);
    await setCapabilities(primary, COLO_CAPABILITIES, true);
    const { checkpointDelayMs } = this.#options;
    if (checkpointDelayMs !== undefined) {
      await primary.execute("migrate-set-parameters", { "x-checkpoint-delay": checkpointDelayMs });
    }
    let inColo = false;
    const outcome = primary.waitFor(
      "MIGRATION",
      ({ data: { status } }) => {
        inColo ||= status === "colo";
        return inColo || MIGRATION_ENDED.has(String(status));
      },
      ENTER_TIMEOUT_MS,
    );
    const resumed = primary.waitFor("RESUME", () => inColo, ENTER_TIMEOUT_MS);
    await primary.execute("migrate", { uri: `tcp:${host}:${MIGRATE_PORT}` });
    await outcome;
    if (!inColo) {
      const { errorDescription } = await migrationStatus(primary);
      throw new Error(`QEMU did not enter COLO: ${errorDescription ?? "the migration ended"}`);
    }
    await resumed;
  }

  /** Asks for a checkpoint and waits for its end. Only in COLO; `x-checkpoint-delay` is set to its value. */
  async checkpoint(): Promise<void> {
    const primary = this.#clients[0]!;
    const resumed = primary.waitFor("RESUME", () => true, ENTER_TIMEOUT_MS);
    const { checkpointDelayMs = 20_000 } = this.#options;
    await primary.execute("migrate-set-parameters", { "x-checkpoint-delay": checkpointDelayMs });
    await resumed;
  }

  #closeClients(): void {
    for (const client of this.#clients) client.close();
  }
}

function directoryOf(name: string): string {
  if (!/^[a-z0-9-]{1,16}$/.test(name)) throw new Error("a pair's name is 1-16 of a-z, 0-9 and -");
  return join(ROOT, name);
}

/** Waits until the secondary's filters have found the primary's ports. */
async function proxyConnected(primary: QmpClient): Promise<void> {
  const deadline = performance.now() + CONNECT_TIMEOUT_MS;
  for (;;) {
    const chardevs = await query(primary, chardevInfo, "query-chardev");
    const waiting = chardevs.filter(
      ({ label, filename }) =>
        ["mirror0", "compare1", "compare0-0", "compare_out0"].includes(label) &&
        filename.startsWith("disconnected"),
    );
    if (waiting.length === 0) return;
    if (performance.now() > deadline) {
      throw new Error(`nobody is connected to ${waiting.map(({ label }) => label).join(", ")}`);
    }
    await Bun.sleep(50);
  }
}

function tail(path: string): string {
  try {
    return readFileSync(path, "utf8").trimEnd().split("\n").slice(-5).join("\n");
  } catch {
    // Nothing was logged.
    return "(empty)";
  }
}
