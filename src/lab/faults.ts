/**
 * Real faults in a lab: signals to its processes, frames that go astray between the hosts, cables that are
 * pulled. Each can be undone.
 *
 * There is no netem in every kernel, so a link that silently loses everything one way is made with the
 * sender's neighbour table: a permanent entry with a MAC that nobody has, so that each frame leaves and the
 * other side's kernel throws it away.
 */
import { ipIn } from "../host/ip.ts";
import { endProcess, isAlive } from "../qemu/process.ts";
import type { Lab } from "./lab.ts";
import { CLIENT_IPV4, HOST_ADDRESSES, type HostLetter } from "./network.ts";

type Victim = "witness" | `${"agent" | "qemu" | "both"}-${HostLetter}`;

const LETTERS: readonly HostLetter[] = ["a", "b"];
const NOBODY = "02:00:00:00:00:99";

export const otherHost = (letter: HostLetter): HostLetter => (letter === "a" ? "b" : "a");

export class LabFaults {
  readonly #lab: Lab;

  constructor(lab: Lab) {
    this.#lab = lab;
  }

  /** Sends a signal to each process that is there; all of them get it before this returns. */
  signal(victim: Victim, signal: NodeJS.Signals): void {
    for (const identity of this.#processes(victim)) process.kill(identity.pid, signal);
  }

  /** kill -9; resolves when they are gone. */
  async kill(victim: Victim): Promise<void> {
    const processes = this.#processes(victim);
    for (const identity of processes) process.kill(identity.pid, "SIGKILL");
    await Promise.all(processes.map((identity) => endProcess(identity)));
  }

  /**
   * What `from` sends to the other host over the replication link gets lost from now on; its network card
   * notices nothing.
   */
  loseReplicationFrom(from: HostLetter): Promise<void> {
    return this.#loseTo(from, HOST_ADDRESSES[otherHost(from)].replication, "repl");
  }

  /** What the agent of `from` sends to the arbiter gets lost; the VM's clients are reached as before. */
  loseArbiterFrom(from: HostLetter): Promise<void> {
    return this.#loseTo(from, CLIENT_IPV4, "br0");
  }

  /** What `from` itself, not its VM, sends to the other host over the clients' network gets lost. */
  loseClientPathFrom(from: HostLetter): Promise<void> {
    return this.#loseTo(from, HOST_ADDRESSES[otherHost(from)].lan, "br0");
  }

  #loseTo(from: HostLetter, address: string, device: string): Promise<void> {
    return this.#ip(from, "neigh", "replace", address, "lladdr", NOBODY, "dev", device, "nud", "permanent");
  }

  /** Takes the replication link down: both cards notice. */
  async pullReplication(): Promise<void> {
    await this.#ip("a", "link", "set", "repl", "down");
  }

  /** Pulls a host's cable to the clients' switch, at the switch. */
  async pullUplink(letter: HostLetter): Promise<void> {
    await ipIn(this.#lab.namespaces.switch)("link", "set", `to-${letter}`, "down");
  }

  /**
   * A power failure: from one moment on the host sends nothing, not even the end of its connections.
   */
  async powerOff(letter: HostLetter): Promise<void> {
    this.signal(`both-${letter}`, "SIGSTOP");
    // Both cables at once, and before the kernel closes the sockets of what it ends.
    await Promise.all([
      this.loseReplicationFrom(letter),
      this.loseReplicationFrom(otherHost(letter)),
      this.#ip(letter, "link", "set", "uplink", "down"),
    ]);
    await this.kill(`both-${letter}`);
  }

  /** All links as they were. */
  async healLinks(): Promise<void> {
    await this.#ip("a", "link", "set", "repl", "up");
    for (const letter of LETTERS) {
      for (const device of ["repl", "br0"]) {
        await this.#ip(letter, "neigh", "flush", "dev", device, "nud", "permanent");
      }
      await this.#ip(letter, "link", "set", "uplink", "up");
      await ipIn(this.#lab.namespaces.switch)("link", "set", `to-${letter}`, "up");
    }
  }

  #processes(victim: Victim) {
    const names =
      victim === "witness"
        ? (["witness"] as const)
        : LETTERS.filter((letter) => victim.endsWith(`-${letter}`)).flatMap((letter) => [
            ...(victim.startsWith("qemu") ? [] : [`agent-${letter}` as const]),
            ...(victim.startsWith("agent") ? [] : [`qemu-${letter}` as const]),
          ]);
    return names
      .map((name) => this.#lab.process(name))
      .filter((identity) => identity !== undefined && isAlive(identity)) as NonNullable<
      ReturnType<Lab["process"]>
    >[];
  }

  async #ip(letter: HostLetter, ...words: string[]): Promise<void> {
    await ipIn(this.#lab.namespaces[letter])(...words);
  }
}
