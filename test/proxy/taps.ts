/** Two taps of a VM and one of somebody else on a bridge, in a namespace of their own. */
import { inNamespace } from "../../src/ffi/netns.ts";
import { Tap } from "../../src/ffi/tap.ts";
import { addNamespace, ip, removeNamespaces, run } from "../bpf/network.ts";

const VNET_HEADER_BYTES = 10;
/** For experiments (IEEE 802, section 9.2.4). */
const ETHER_TYPE = 0x88b5;
const ARRIVAL_MS = 10_000;
const QUIET_MS = 100;

export const VM_TAPS = ["vm0", "vm1"] as const;

let count = 0;

export class Taps {
  private constructor(
    readonly vm: readonly [Tap, Tap],
    readonly network: Tap,
    private readonly namespace: string,
  ) {}

  static make(namespace: string): Taps {
    removeNamespaces(namespace);
    addNamespace(namespace);
    ip(`-n ${namespace} link add br0 type bridge mcast_snooping 0`);
    ip(`-n ${namespace} link set br0 up`);
    const names = [...VM_TAPS, "net0"];
    for (const name of names)
      run("ip", "-n", namespace, "tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr");
    const [a, b, network] = inNamespace(namespace, () =>
      names.map((name) => new Tap(name, { offload: false })),
    );
    for (const name of names) ip(`-n ${namespace} link set ${name} master br0 up`);
    return new Taps([a!, b!], network!, namespace);
  }

  remove(): void {
    for (const tap of [...this.vm, this.network]) tap.close();
    removeNamespaces(this.namespace);
  }
}

/** Sends a broadcast frame; returns the number that it can be known by. */
export function send(from: Tap): number {
  const frame = new Uint8Array(VNET_HEADER_BYTES + 64);
  const view = new DataView(frame.buffer, VNET_HEADER_BYTES);
  frame.fill(0xff, VNET_HEADER_BYTES, VNET_HEADER_BYTES + 6);
  frame.set([2, 0, 0, 0, 7, 1], VNET_HEADER_BYTES + 6);
  view.setUint16(12, ETHER_TYPE);
  view.setUint32(14, ++count);
  from.write(frame);
  return count;
}

/**
 * Whether all of these frames arrive, in whatever order; others are read over. A slow machine has time for
 * it.
 */
export function arrive(numbers: readonly number[], to: Tap): Promise<boolean> {
  return arriveWithin(numbers, to, ARRIVAL_MS);
}

/** Whether not all of these frames have come by a time at which they otherwise would have. */
export async function stayAway(numbers: readonly number[], to: Tap): Promise<boolean> {
  return !(await arriveWithin(numbers, to, QUIET_MS));
}

async function arriveWithin(numbers: readonly number[], to: Tap, limitMs: number): Promise<boolean> {
  const missing = new Set(numbers);
  const end = performance.now() + limitMs;
  do {
    for (let read = to.read(); read !== undefined; read = to.read()) {
      const seen = new DataView(read.buffer, read.byteOffset + VNET_HEADER_BYTES);
      if (seen.getUint16(12) === ETHER_TYPE) missing.delete(seen.getUint32(14));
    }
    if (missing.size === 0) return true;
    await Bun.sleep(1);
  } while (performance.now() < end);
  return false;
}

export function passes(from: Tap, to: Tap): Promise<boolean> {
  return arrive([send(from)], to);
}

export function isStopped(from: Tap, to: Tap): Promise<boolean> {
  return stayAway([send(from)], to);
}
