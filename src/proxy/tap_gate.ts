/**
 * The gate of a VM without BPF programs at its taps: a table of nftables with one chain for the taps' output
 * and one for their input. Both drop. The first passes frames while the lease holds. The lease is an element
 * of a set, which the kernel removes at its timeout, even if the agent is dead. The second passes frames from
 * letInput() to keepInputOut().
 *
 * The timers of nftables stop while the host is suspended. Do not suspend a host that runs VMs behind this
 * gate.
 */

import { Problem } from "../errors/problem.ts";
import { ifindex } from "../ffi/libc.ts";
import { NftSet } from "../ffi/nft_set.ts";
import { bootMs } from "../host/clock.ts";

/**
 * An element's timeout may be this late, by a tick of the slowest kernel (HZ=100); the lease is shortened by
 * it.
 */
const TICK_MS = 10;
/** Before all other chains that a host may have at the hook. */
const PRIORITY = -500;

export class TapGate {
  readonly #lease: NftSet;
  readonly #input: NftSet;
  readonly #ifindexes: readonly number[];
  #leaseUntilMs = 0;
  #takesInput = false;

  private constructor(
    private readonly table: string,
    private readonly taps: readonly string[],
  ) {
    this.#ifindexes = taps.map((tap) => {
      const index = ifindex(tap);
      if (index === 0) throw new Error(`there is no interface "${tap}"`);
      return index;
    });
    this.#lease = new NftSet(table, "lease");
    this.#input = new NftSet(table, "input");
  }

  /** Makes the table, closed for everything, in place of one that an earlier agent left. */
  static async open(table: string, taps: readonly string[]): Promise<TapGate> {
    const gate = new TapGate(table, taps);
    try {
      await gate.#make();
      return gate;
    } catch (error) {
      gate.close();
      throw error;
    }
  }

  /** Removes the table; then the taps are open. No error if there is none. */
  static async remove(table: string): Promise<void> {
    if (Bun.which("nft") === null) return;
    await nft(`add table netdev ${table}\ndelete table netdev ${table}\n`);
  }

  /** Nothing leaves, nothing gets in. */
  block(): void {
    this.dropLease();
    this.keepInputOut();
  }

  /**
   * Lets frames leave until `untilMs` (CLOCK_BOOTTIME) unless the lease is longer already. Throws if the
   * kernel refuses.
   */
  extendLease(untilMs: number): void {
    const leftMs = untilMs - bootMs() - TICK_MS;
    if (untilMs <= this.#leaseUntilMs || leftMs < 1) return;
    this.#lease.replace(this.#ifindexes, leftMs);
    this.#leaseUntilMs = untilMs;
  }

  dropLease(): void {
    this.#leaseUntilMs = 0;
    this.#lease.replace([]);
  }

  letInput(): void {
    this.#input.replace(this.#ifindexes);
    this.#takesInput = true;
  }

  keepInputOut(): void {
    this.#takesInput = false;
    this.#input.replace([]);
  }

  /**
   * Checks that the table is there. "flush ruleset", for example in a restart of the host's firewall, removes
   * it and opens the taps. It is then made again without a lease, and this throws.
   */
  async check(): Promise<void> {
    try {
      this.#input.replace(this.#takesInput ? this.#ifindexes : []);
    } catch (error) {
      this.#leaseUntilMs = 0;
      await this.#make();
      if (this.#takesInput) this.letInput();
      throw new Error(
        `the table ${this.table} was missing, so that ${this.taps.join(", ")} let frames pass; it has ` +
          "been made again. " +
          'Remove "flush ruleset" from the firewall scripts of this host',
        { cause: error },
      );
    }
  }

  close(): void {
    this.#lease.close();
    this.#input.close();
  }

  async #make(): Promise<void> {
    const devices = `devices = { ${this.taps.map((tap) => JSON.stringify(tap)).join(", ")} }`;
    const chain = (name: string, hook: string, rule: string) =>
      `  chain ${name} { type filter hook ${hook} ${devices} priority ${PRIORITY}; policy drop; ${rule} ` +
      "accept; }\n";
    try {
      // One transaction: there is no moment without a table.
      await nft(
        `add table netdev ${this.table}\ndelete table netdev ${this.table}\ntable netdev ${this.table} {\n` +
          "  set lease { type iface_index; flags timeout; }\n  set input { type iface_index; }\n" +
          chain("from_vm", "ingress", "iif @lease") +
          chain("to_vm", "egress", "oif @input") +
          "}\n",
      );
    } catch (error) {
      throw new Error(
        `nftables rejects the gate of ${this.taps.join(", ")}: ${(error as Error).message}. ` +
          'proxy = "qemu" needs nft and Linux 5.16 or later with NF_TABLES_NETDEV, NETFILTER_INGRESS and ' +
          "NETFILTER_EGRESS",
        { cause: error },
      );
    }
  }
}

async function nft(script: string): Promise<void> {
  const path = Bun.which("nft", { PATH: `${process.env.PATH ?? ""}:/usr/sbin:/sbin` });
  if (path === null)
    throw new Problem('there is no command "nft"', "install nftables (apt-get install nftables)");
  const child = Bun.spawn([path, "-f", "-"], {
    stdin: new TextEncoder().encode(script),
    stdout: "ignore",
    stderr: "pipe",
  });
  const complaint = await new Response(child.stderr).text();
  if ((await child.exited) !== 0) throw new Error(complaint.trim().split("\n")[0]);
}
