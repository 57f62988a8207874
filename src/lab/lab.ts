/**
 * The two-host lab on one machine: network, witness, two QEMUs and two agents, kept in a directory so that
 * separate commands (up, status, down) can work on it. Nothing of it is a child of the command that started
 * it.
 */

import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { readStatus } from "../api/client.ts";
import type { VmStatus } from "../api/status.ts";
import { makeCertificates } from "../certificates/make.ts";
import { Problem } from "../errors/problem.ts";
import { DataPlane } from "../ffi/data_plane.ts";
import { AgentUnreachableError } from "../host/agent_http.ts";
import { qemuArgv, qemuEnvironment, qemuImgArgv } from "../host/installed.ts";
import { PIN_ROOT } from "../host/pin_root.ts";
import { endQemu, findQemu } from "../qemu/instance.ts";
import { endProcess, isAlive, type ProcessIdentity, startDetached } from "../qemu/process.ts";
import type { QemuRole } from "../qemu/settings.ts";
import { agentConfig, certificatePath, labMachine, VM_NAME } from "./agent_config.ts";
import { guestReadyPattern } from "./assets.ts";
import type { LabOptions } from "./lab_options.ts";
import { type LabReport, labReport } from "./lab_report.ts";
import {
  type HostState,
  hasLabState,
  type LabState,
  LETTERS,
  labDirectory,
  readLabState,
  writeLabState,
} from "./lab_state.ts";
import {
  CLIENT_IPV4,
  createNetwork,
  GUEST_MAC,
  type HostLetter,
  inNamespace,
  type LabNamespaces,
  removeNetwork,
  run,
  TAP,
} from "./network.ts";
import { LAB_PORTS } from "./ports.ts";
import { labDisk, labPaths, startLabQemu } from "./qemu.ts";

const CERTIFICATE_DAYS = 30;
const DISK_BYTES = 64 << 20;
const START_TIMEOUT_MS = 60_000;
const STATUS_TIMEOUT_MS = 2_000;
const PROTECT_TIMEOUT_MS = 180_000;

type LabProgress = (step: string) => void;

const colo = (...words: string[]) => [process.execPath, join(import.meta.dir, "../cli/main.ts"), ...words];

export class Lab {
  readonly #state: LabState;

  private constructor(state: LabState) {
    this.#state = state;
  }

  /** An existing lab. Throws when there is none of that name. */
  static open(name: string): Lab {
    return new Lab(readLabState(name));
  }

  /**
   * Starts a lab and returns when its VM is protected (or runs, with proxy "none"). On an error all is taken
   * down.
   */
  static async up(options: LabOptions, progress: LabProgress = () => undefined): Promise<Lab> {
    if (!/^[a-z0-9][a-z0-9-]{0,15}$/.test(options.name)) {
      throw new Error("a lab's name is 1-16 of a-z, 0-9 and -");
    }
    const directory = labDirectory(options.name);
    if (existsSync(directory)) {
      throw new Problem(`lab "${options.name}" is up already`, "remove it first with colo-agent lab down");
    }
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    try {
      progress("network");
      const namespaces = await createNetwork(options.name, options);
      const host = (letter: HostLetter): HostState => {
        const own = join(directory, letter);
        const { qmpSpare: qmp, serial } = labPaths(own);
        const [socket, disk] = [join(own, "api.sock"), join(own, "disk.raw")];
        const secondDisk = join(own, "disk1.raw");
        return { letter, netns: namespaces[letter], directory: own, socket, disk, secondDisk, qmp, serial };
      };
      const lab = new Lab({
        name: options.name,
        namespaces,
        options,
        ownGuest: options.kernel === undefined,
        hosts: { a: host("a"), b: host("b") },
      });
      writeLabState(lab.#state);
      await lab.#start(progress);
      return lab;
    } catch (error) {
      await Lab.down(options.name);
      throw error;
    }
  }

  /** Takes a lab down, also one that was left half way; false when there was nothing. */
  static async down(name: string): Promise<boolean> {
    const directory = labDirectory(name);
    const found = existsSync(directory);
    if (hasLabState(name)) {
      const state = readLabState(name);
      for (const host of Object.values(state.hosts)) {
        if (host.agent !== undefined) await endProcess(host.agent);
        await endQemu(host);
      }
      if (state.witness !== undefined) await endProcess(state.witness);
    }
    await removeNetwork(name);
    for (const letter of LETTERS) {
      DataPlane.remove(join(PIN_ROOT, `${name}-${letter}`, VM_NAME), []);
      rmSync(join(PIN_ROOT, `${name}-${letter}`), { recursive: true, force: true });
    }
    rmSync(directory, { recursive: true, force: true });
    return found;
  }

  get namespaces(): LabNamespaces {
    return this.#state.namespaces;
  }

  host(letter: HostLetter): Readonly<HostState> {
    return this.#state.hosts[letter];
  }

  /** Directory of logs, sockets and disks. */
  get directory(): string {
    return labDirectory(this.#state.name);
  }

  /** What a host's agent says of the VM, undefined when it does not answer. */
  async agentStatus(letter: HostLetter): Promise<VmStatus | undefined> {
    try {
      const { vms } = await readStatus(`unix:${this.#state.hosts[letter].socket}`, STATUS_TIMEOUT_MS);
      return vms[0];
    } catch (error) {
      if (error instanceof AgentUnreachableError) return undefined;
      throw error;
    }
  }

  /** The text of a host's /metrics. Throws when its agent does not answer. */
  async metrics(letter: HostLetter): Promise<string> {
    const response = await fetch("http://agent/metrics", { unix: this.#state.hosts[letter].socket });
    return response.text();
  }

  /** The unix socket on which the agent of `host` takes commands. */
  agentSocket(host: HostLetter): string {
    return this.#state.hosts[host].socket;
  }

  /**
   * Waits until `condition` holds for what both agents say; throws after `timeoutMs`, or when it cannot come
   * true.
   */
  async waitFor(
    what: string,
    condition: (status: Record<HostLetter, VmStatus | undefined>) => boolean,
    timeoutMs: number,
  ): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const [a, b] = await Promise.all([this.agentStatus("a"), this.agentStatus("b")]);
      if (condition({ a, b })) return;
      if (performance.now() > deadline) {
        const seen = JSON.stringify({ a: a && [a.phase, a.reason], b: b && [b.phase, b.reason] });
        throw new Error(
          `${what}: not within ${timeoutMs} ms; the agents say ${seen}; logs are in ${this.directory}`,
        );
      }
      await Bun.sleep(50);
    }
  }

  report(): Promise<LabReport> {
    return labReport(this.#state, (letter) => this.agentStatus(letter));
  }

  /** kill -9 of processes only; src/lab/faults.ts has the loss of a whole host and the rest. */
  async kill(letter: HostLetter, what: "qemu" | "agent" | "both"): Promise<void> {
    const host = this.#state.hosts[letter];
    // The agent first, or it would start another QEMU.
    const victims = [what === "qemu" ? undefined : host.agent, what === "agent" ? undefined : findQemu(host)];
    await Promise.all(victims.map((victim) => victim && endProcess(victim)));
  }

  /** Starts the witness; after a kill it goes on with the records it had. */
  startWitness(): void {
    const state = this.#state;
    state.witness = startDetached(
      [
        ...this.#priority,
        ...inNamespace(state.namespaces.client),
        ...colo("witness", "--listen", `${CLIENT_IPV4}:${LAB_PORTS.witness}`),
        ...["--directory", join(this.directory, "witness")],
        ...["--tls-ca", certificatePath(this.#state.name, "ca.pem")],
        ...["--tls-certificate", certificatePath(this.#state.name, "witness.pem")],
        ...["--tls-key", certificatePath(this.#state.name, "witness.key")],
      ],
      join(this.directory, "witness.log"),
    );
    writeLabState(this.#state);
  }

  get #priority(): string[] {
    const { niceness } = this.#state.options;
    return niceness === undefined ? [] : ["nice", "-n", String(niceness)];
  }

  /** Processes of the lab by what they are; undefined for one that was never started. */
  process(which: "witness" | `${"agent" | "qemu"}-${HostLetter}`): ProcessIdentity | undefined {
    const { witness, hosts } = this.#state;
    if (which === "witness") return witness;
    const letter: HostLetter = which.endsWith("a") ? "a" : "b";
    return which.startsWith("agent") ? hosts[letter].agent : findQemu(hosts[letter]);
  }

  async #start(progress: LabProgress): Promise<void> {
    const state = this.#state;
    const { diskImage, secondDiskImage } = state.options;
    for (const { letter, directory, disk, secondDisk } of Object.values(state.hosts)) {
      mkdirSync(directory, { recursive: true });
      await makeDisk(disk, letter === "a", diskImage);
      if (secondDiskImage !== undefined) await makeDisk(secondDisk, letter === "a", secondDiskImage);
    }
    if (state.options.proxy === "none") {
      progress("QEMU on host a");
      await this.startQemu("a", "primary");
      if (this.#guestSaysReady) await this.#waitForGuest(progress);
      return;
    }
    writeFileSync(join(this.directory, "heartbeat.key"), randomBytes(32), { mode: 0o600 });
    progress("witness");
    await makeCertificates({
      directory: certificatePath(this.#state.name),
      requests: [
        { name: "witness", addresses: [CLIENT_IPV4] },
        ...LETTERS.map((letter) => ({ name: `${state.name}-${letter}`, addresses: [] })),
      ],
      days: CERTIFICATE_DAYS,
      qemu: state.options.tls === true,
    });
    this.startWitness();
    for (const letter of LETTERS) {
      progress(`agent on host ${letter}`);
      this.startAgent(letter);
      await this.#waitForAgent(letter);
      if (state.options.attached) await this.startQemu(letter, letter === "a" ? "primary" : "secondary");
      if (letter === "a" && this.#guestSaysReady) await this.#waitForGuest(progress);
    }
    if (state.options.wrongQemu !== undefined) return;
    progress("protecting: disk, memory, first checkpoints");
    await this.waitFor("the VM is protected", ({ a }) => a?.protected === true, PROTECT_TIMEOUT_MS);
  }

  /** A host whose agent was lost comes back; the agent sees to everything else. */
  async bringBack(letter: HostLetter): Promise<void> {
    const { agent } = this.#state.hosts[letter];
    if (agent === undefined || !isAlive(agent)) this.startAgent(letter);
    await this.#waitForAgent(letter);
  }

  /** For a lab whose agents do not start QEMUs. */
  async startQemu(letter: HostLetter, role: QemuRole): Promise<void> {
    const { netns, disk } = this.#state.hosts[letter];
    await startLabQemu({
      ...labMachine(this.#state, letter),
      role,
      qemuArgv: qemuArgv(),
      qemuImgArgv: qemuImgArgv(),
      environment: qemuEnvironment(),
      disks: [labDisk(disk)],
      network: { tap: TAP, mac: GUEST_MAC },
      netns,
      name: `${this.#state.name}-${letter}`,
    });
  }

  get #guestSaysReady(): boolean {
    return this.#state.ownGuest || this.#state.options.ready === true;
  }

  async #waitForGuest(progress: LabProgress): Promise<void> {
    progress("guest boots");
    const { serial, agent, directory } = this.#state.hosts.a;
    const deadline = performance.now() + START_TIMEOUT_MS;
    while (!(existsSync(serial) && guestReadyPattern.test(readFileSync(serial, "latin1")))) {
      if (agent === undefined ? findQemu({ directory }) === undefined : !isAlive(agent))
        throw new Error(`the guest's host ended while it booted; see ${directory}/qemu.log and agent.log`);
      if (performance.now() > deadline) throw new Error(`the guest did not boot; see ${serial}`);
      await Bun.sleep(50);
    }
  }

  /** Starts a host's agent with the lab's configuration. */
  startAgent(letter: HostLetter): void {
    const host = this.#state.hosts[letter];
    const path = join(host.directory, "agent.toml");
    writeFileSync(path, agentConfig(this.#state, letter));
    host.agent = startDetached(
      [...this.#priority, ...inNamespace(host.netns), ...colo("run", "--config", path)],
      join(host.directory, "agent.log"),
    );
    writeLabState(this.#state);
  }

  /** Has an agent end as `colo-agent restart` does, and starts it again. */
  async restartAgent(letter: HostLetter): Promise<void> {
    const { agent, socket } = this.#state.hosts[letter];
    const response = await fetch("http://agent/v1/restart", { method: "POST", unix: socket });
    if (!response.ok)
      throw new Error(`the agent of host ${letter} does not restart: ${await response.text()}`);
    const deadline = performance.now() + START_TIMEOUT_MS;
    while (agent !== undefined && isAlive(agent)) {
      if (performance.now() > deadline)
        throw new Error(`the agent of host ${letter} announced its restart and does not end`);
      await Bun.sleep(10);
    }
    this.startAgent(letter);
  }

  async #waitForAgent(letter: HostLetter): Promise<void> {
    const deadline = performance.now() + START_TIMEOUT_MS;
    const log = join(this.directory, letter, "agent.log");
    while ((await this.agentStatus(letter)) === undefined) {
      const { agent } = this.#state.hosts[letter];
      if (agent === undefined || !isAlive(agent))
        throw new Error(`the agent of host ${letter} ended:\n${tail(log)}`);
      if (performance.now() > deadline)
        throw new Error(`the agent of host ${letter} does not answer:\n${tail(log)}`);
      await Bun.sleep(50);
    }
  }
}

/** The replica's disk has only the length: protecting the VM fills it. */
async function makeDisk(path: string, isPrimary: boolean, image?: string): Promise<void> {
  if (isPrimary && image !== undefined) {
    await run("cp", "--sparse=always", "--reflink=auto", image, path);
    return;
  }
  writeFileSync(path, "");
  truncateSync(path, image === undefined ? DISK_BYTES : statSync(image).size);
}

function tail(path: string): string {
  try {
    return readFileSync(path, "utf8").trimEnd().split("\n").slice(-10).join("\n");
  } catch {
    // Nothing was logged.
    return "(no log)";
  }
}
