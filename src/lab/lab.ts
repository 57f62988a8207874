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
import { DataPlane } from "../ffi/data_plane.ts";
import { AgentUnreachableError } from "../host/agent_http.ts";
import { guestKernel, qemuArgv, qemuEnvironment, qemuImgArgv } from "../host/installed.ts";
import { PIN_ROOT } from "../host/pin_root.ts";
import { endQemu, findQemu } from "../qemu/instance.ts";
import { endProcess, isAlive, type ProcessIdentity, startDetached } from "../qemu/process.ts";
import type { QemuRole } from "../qemu/settings.ts";
import { guestCommandLine, guestInitrd, guestReadyPattern, type WrongQemu, wrongQemu } from "./assets.ts";
import {
  CLIENT_IPV4,
  createNetwork,
  GUEST_IPV4,
  GUEST_IPV6,
  GUEST_MAC,
  HOST_ADDRESSES,
  type HostLetter,
  inNamespace,
  type LabNamespaces,
  removeNetwork,
  run,
  SECOND_GUEST_IPV4,
  SECOND_GUEST_MAC,
  SECOND_TAP,
  TAP,
} from "./network.ts";
import { LAB_NODES, type LabMachine, labArguments, labDisk, labPaths, startLabQemu } from "./qemu.ts";

const ROOT = "/run/colo-agent-lab";
const VM_NAME = "vm1";
const WITNESS_PORT = 7300;
const CONTROL_PORT = 7400;
const CLIENT_PATH_PORT = 7402;
const API_PORT = 7401;
const CERTIFICATE_DAYS = 30;
const DISK_BYTES = 64 << 20;
const START_TIMEOUT_MS = 60_000;
const STATUS_TIMEOUT_MS = 2_000;
const PROTECT_TIMEOUT_MS = 180_000;
const LETTERS: readonly HostLetter[] = ["a", "b"];

export interface LabOptions {
  name: string;
  /** Another guest; its addresses are its own business. */
  kernel?: string;
  initrd?: string;
  append?: string;
  /**
   * A raw image that host a's disk begins as a copy of; the disk of host b is as long. Its length is a
   * multiple of 64 KiB. Default: 64 MiB of zeros.
   */
  diskImage?: string;
  /** The same for a second disk, "disk1". Default: there is none. */
  secondDiskImage?: string;
  /**
   * The guest says on its first serial port when it serves (guestReadyPattern) and is waited for, as the
   * lab's own always is.
   */
  ready?: boolean;
  memoryMib: number;
  /** Queues of the agents' VM's network card, and as many processors. Default 1. */
  queues?: number;
  /** The lab's own guest has a second network card, with SECOND_GUEST_IPV4. */
  secondCard?: boolean;
  /** The agents attach to QEMUs that the lab starts; those that are lost are for startQemu(). */
  attached?: boolean;
  /** "none": one unprotected VM without agents. */
  proxy: "agent" | "none";
  /** QEMUs that cannot do COLO, on both hosts: the VM is then left alone, and the lab is up when it runs. */
  wrongQemu?: WrongQemu;
  /** Lines added to the agents' configuration, in their [[vm]] table; "%h" in them is the host's letter. */
  vmConfig?: string;
  /** Lines added to the agents' [agent] table. */
  agentConfig?: string;
  /** QEMU's own TLS for its streams between the hosts. */
  tls?: boolean;
}

interface HostState {
  letter: HostLetter;
  netns: string;
  directory: string;
  agent?: ProcessIdentity;
  /** A QMP socket for people and tests. */
  qmp: string;
  socket: string;
  serial: string;
  disk: string;
  /** Of a lab with a second disk. */
  secondDisk: string;
}

interface LabState {
  name: string;
  namespaces: LabNamespaces;
  options: LabOptions;
  ownGuest: boolean;
  witness?: ProcessIdentity;
  hosts: Record<HostLetter, HostState>;
}

export interface LabHost {
  name: string;
  netns: string;
  tap: string;
  /** "primary", "secondary" or "none". */
  role: string;
  agent_pid: number | null;
  qemu_pid: number | null;
  /** A QMP socket for people; the agent has another. */
  qmp: string | null;
  /** Reachable from the client's namespace. */
  api: string | null;
}

export interface LabReport {
  client: { netns: string };
  guest: { ipv4: string | null; ipv6: string | null; mac: string };
  protected: boolean;
  hosts: LabHost[];
}

export type LabProgress = (step: string) => void;

const colo = (...words: string[]) => [process.execPath, join(import.meta.dir, "../cli/main.ts"), ...words];

export class Lab {
  private constructor(private readonly state: LabState) {}

  static directory(name: string): string {
    return join(ROOT, name);
  }

  /** An existing lab. Throws when there is none of that name. */
  static open(name: string): Lab {
    const path = join(Lab.directory(name), "state.json");
    if (!existsSync(path)) throw new Error(`no lab "${name}" is up; start one with: colo-agent lab up`);
    return new Lab(JSON.parse(readFileSync(path, "utf8")) as LabState);
  }

  /**
   * Starts a lab and returns when its VM is protected (or runs, with proxy "none"). On an error all is taken
   * down.
   */
  static async up(options: LabOptions, progress: LabProgress = () => undefined): Promise<Lab> {
    if (!/^[a-z0-9][a-z0-9-]{0,15}$/.test(options.name)) {
      throw new Error("a lab's name is 1-16 of a-z, 0-9 and -");
    }
    const directory = Lab.directory(options.name);
    if (existsSync(directory)) {
      throw new Error(`lab "${options.name}" is up already; remove it first: colo-agent lab down`);
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
      lab.#save();
      await lab.#start(progress);
      return lab;
    } catch (error) {
      await Lab.down(options.name);
      throw error;
    }
  }

  /** Takes a lab down, also one that was left half way; false when there was nothing. */
  static async down(name: string): Promise<boolean> {
    const directory = Lab.directory(name);
    const found = existsSync(directory);
    if (existsSync(join(directory, "state.json"))) {
      const { state } = Lab.open(name);
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
    return this.state.namespaces;
  }

  host(letter: HostLetter): Readonly<HostState> {
    return this.state.hosts[letter];
  }

  /** Directory of logs, sockets and disks. */
  get directory(): string {
    return Lab.directory(this.state.name);
  }

  /** What a host's agent says of the VM, undefined when it does not answer. */
  async agentStatus(letter: HostLetter): Promise<VmStatus | undefined> {
    try {
      const { vms } = await readStatus(`unix:${this.state.hosts[letter].socket}`, STATUS_TIMEOUT_MS);
      return vms[0];
    } catch (error) {
      if (error instanceof AgentUnreachableError) return undefined;
      throw error;
    }
  }

  /** The text of a host's /metrics. Throws when its agent does not answer. */
  async metrics(letter: HostLetter): Promise<string> {
    const response = await fetch("http://agent/metrics", { unix: this.state.hosts[letter].socket });
    return response.text();
  }

  /** The unix socket on which the agent of `host` takes commands. */
  agentSocket(host: HostLetter): string {
    return this.state.hosts[host].socket;
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

  async report(): Promise<LabReport> {
    const hosts: LabHost[] = [];
    let isProtected = false;
    for (const letter of LETTERS) {
      const host = this.state.hosts[letter];
      const status = host.agent === undefined ? undefined : await this.agentStatus(letter);
      if (status?.protected) isProtected = true;
      const qemu = findQemu(host);
      const alive = (identity: ProcessIdentity | undefined) =>
        identity !== undefined && isAlive(identity) ? identity.pid : null;
      hosts.push({
        name: `${this.state.name}-${letter}`,
        netns: host.netns,
        tap: TAP,
        role: status?.role ?? (this.state.options.proxy === "none" && letter === "a" ? "primary" : "none"),
        agent_pid: alive(host.agent),
        qemu_pid: qemu?.pid ?? null,
        qmp: qemu === undefined ? null : host.qmp,
        api: alive(host.agent) === null ? null : `http://${HOST_ADDRESSES[letter].lan}:${API_PORT}`,
      });
    }
    const { ownGuest } = this.state;
    return {
      client: { netns: this.namespaces.client },
      guest: { ipv4: ownGuest ? GUEST_IPV4 : null, ipv6: ownGuest ? GUEST_IPV6 : null, mac: GUEST_MAC },
      protected: isProtected,
      hosts,
    };
  }

  /** kill -9 of processes only; src/lab/faults.ts has the loss of a whole host and the rest. */
  async kill(letter: HostLetter, what: "qemu" | "agent" | "both"): Promise<void> {
    const host = this.state.hosts[letter];
    // The agent first, or it would start another QEMU.
    const victims = [what === "qemu" ? undefined : host.agent, what === "agent" ? undefined : findQemu(host)];
    await Promise.all(victims.map((victim) => victim && endProcess(victim)));
  }

  /** Starts the witness; after a kill it goes on with the records it had. */
  startWitness(): void {
    const { state } = this;
    state.witness = startDetached(
      [
        ...inNamespace(state.namespaces.client),
        ...colo("witness", "--listen", `${CLIENT_IPV4}:${WITNESS_PORT}`),
        ...["--directory", join(this.directory, "witness")],
        ...["--tls-ca", this.#certificate("ca.pem")],
        ...["--tls-certificate", this.#certificate("witness.pem")],
        ...["--tls-key", this.#certificate("witness.key")],
      ],
      join(this.directory, "witness.log"),
    );
    this.#save();
  }

  /** Processes of the lab by what they are; undefined for one that was never started. */
  process(which: "witness" | `${"agent" | "qemu"}-${HostLetter}`): ProcessIdentity | undefined {
    const { witness, hosts } = this.state;
    if (which === "witness") return witness;
    const letter: HostLetter = which.endsWith("a") ? "a" : "b";
    return which.startsWith("agent") ? hosts[letter].agent : findQemu(hosts[letter]);
  }

  #certificate(file = ""): string {
    return join(this.directory, "certificates", file);
  }

  #save(): void {
    writeFileSync(join(this.directory, "state.json"), JSON.stringify(this.state, undefined, 2));
  }

  async #start(progress: LabProgress): Promise<void> {
    const { state } = this;
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
      directory: this.#certificate(),
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
    const { agent } = this.state.hosts[letter];
    if (agent === undefined || !isAlive(agent)) this.startAgent(letter);
    await this.#waitForAgent(letter);
  }

  #machine(letter: HostLetter): LabMachine {
    const { options, ownGuest, hosts } = this.state;
    const initrd = ownGuest ? guestInitrd() : options.initrd;
    const append = ownGuest
      ? guestCommandLine(
          { ip4: `${GUEST_IPV4}/24`, ip6: `${GUEST_IPV6}/64` },
          [options.secondCard ? `colo.second4=${SECOND_GUEST_IPV4}/24` : "", options.append ?? ""]
            .join(" ")
            .trim(),
        )
      : options.append;
    return {
      directory: hosts[letter].directory,
      memoryMib: options.memoryMib,
      cpus: options.queues ?? 1,
      // Its interface is another one there, and without checkpoints there is nothing for it to do.
      ...(options.wrongQemu === undefined ? {} : { plugin: false as const }),
      kernel: options.kernel ?? guestKernel(),
      ...(initrd === undefined ? {} : { initrd }),
      ...(append === undefined ? {} : { append }),
    };
  }

  /** For a lab whose agents do not start QEMUs. */
  async startQemu(letter: HostLetter, role: QemuRole): Promise<void> {
    const { netns, disk } = this.state.hosts[letter];
    await startLabQemu({
      ...this.#machine(letter),
      role,
      qemuArgv: qemuArgv(),
      qemuImgArgv: qemuImgArgv(),
      environment: qemuEnvironment(),
      disks: [labDisk(disk)],
      network: { tap: TAP, mac: GUEST_MAC },
      netns,
      name: `${this.state.name}-${letter}`,
    });
  }

  get #guestSaysReady(): boolean {
    return this.state.ownGuest || this.state.options.ready === true;
  }

  async #waitForGuest(progress: LabProgress): Promise<void> {
    progress("guest boots");
    const { serial, agent, directory } = this.state.hosts.a;
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
    const host = this.state.hosts[letter];
    const path = join(host.directory, "agent.toml");
    writeFileSync(path, this.#agentConfig(letter));
    host.agent = startDetached(
      [...inNamespace(host.netns), ...colo("run", "--config", path)],
      join(host.directory, "agent.log"),
    );
    this.#save();
  }

  /** Has an agent end as `colo-agent restart` does, and starts it again. */
  async restartAgent(letter: HostLetter): Promise<void> {
    const { agent, socket } = this.state.hosts[letter];
    const response = await fetch("http://agent/v1/restart", { method: "POST", unix: socket });
    if (!response.ok)
      throw new Error(`the agent of host ${letter} does not restart: ${await response.text()}`);
    while (agent !== undefined && isAlive(agent)) await Bun.sleep(10);
    this.startAgent(letter);
  }

  async #waitForAgent(letter: HostLetter): Promise<void> {
    const deadline = performance.now() + START_TIMEOUT_MS;
    const log = join(this.directory, letter, "agent.log");
    while ((await this.agentStatus(letter)) === undefined) {
      const { agent } = this.state.hosts[letter];
      if (agent === undefined || !isAlive(agent))
        throw new Error(`the agent of host ${letter} ended:\n${tail(log)}`);
      if (performance.now() > deadline)
        throw new Error(`the agent of host ${letter} does not answer:\n${tail(log)}`);
      await Bun.sleep(50);
    }
  }

  #agentConfig(letter: HostLetter): string {
    const { options } = this.state;
    const { directory, disk, secondDisk } = this.state.hosts[letter];
    const qemu =
      options.wrongQemu === undefined
        ? { argv: qemuArgv(), environment: qemuEnvironment() }
        : wrongQemu(options.wrongQemu);
    const environment = `{ QEMU_MODULE_DIR = "${qemu.environment.QEMU_MODULE_DIR}" }`;
    const other = letter === "a" ? "b" : "a";
    const { lan, replication } = HOST_ADDRESSES[letter];
    const managed = `[[vm.nic]]
tap = "${TAP}"
mac = "${GUEST_MAC}"
queues = ${options.queues ?? 1}
${options.secondCard ? `\n[[vm.nic]]\ntap = "${SECOND_TAP}"\nmac = "${SECOND_GUEST_MAC}"\ntunnel_id = 2\n` : ""}
[[vm.disk]]
path = "${disk}"
quorum_node = "${LAB_NODES.quorum}"
export_node = "${LAB_NODES.disk}"
${options.secondDiskImage === undefined ? "" : `\n[[vm.disk]]\npath = "${secondDisk}"\n`}
[vm.qemu]
command = ${JSON.stringify(qemu.argv)}
img_command = ${JSON.stringify(qemuImgArgv())}
environment = ${environment}
directory = "${directory}"
arguments = ${JSON.stringify(labArguments(this.#machine(letter)))}
`;
    const attached = `[[vm.nic]]
tap = "${TAP}"

[[vm.disk]]
quorum_node = "${LAB_NODES.quorum}"
export_node = "${LAB_NODES.disk}"
`;
    return `[agent]
name = "${this.state.name}-${letter}"
control = "${replication}:${CONTROL_PORT}"
api = "${lan}:${API_PORT}"
socket = "${this.state.hosts[letter].socket}"
log_level = "debug"
state_directory = "${join(this.directory, letter)}"
${options.agentConfig ?? ""}

[peer]
name = "${this.state.name}-${other}"
control = "${HOST_ADDRESSES[other].replication}:${CONTROL_PORT}"

[client_path]
local = "${lan}:${CLIENT_PATH_PORT}"
peer = "${HOST_ADDRESSES[other].lan}:${CLIENT_PATH_PORT}"
key_file = "${join(this.directory, "heartbeat.key")}"

[arbiter]
type = "witness"
url = "https://${CLIENT_IPV4}:${WITNESS_PORT}"
ca = "${this.#certificate("ca.pem")}"
certificate = "${this.#certificate(`${this.state.name}-${letter}.pem`)}"
key = "${this.#certificate(`${this.state.name}-${letter}.key`)}"
${options.tls === true ? `\n[tls]\ndirectory = "${this.#certificate(`${this.state.name}-${letter}-qemu`)}"\n` : ""}
[[vm]]
name = "${VM_NAME}"
uplink = "uplink"
${options.attached ? `qmp = "${labPaths(directory).qmp}"` : ""}
initial_role = "${letter === "a" ? "primary" : "secondary"}"
${options.vmConfig?.replaceAll("%h", letter) ?? ""}

${options.attached ? attached : managed}`;
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
    return "(no log)";
  }
}
