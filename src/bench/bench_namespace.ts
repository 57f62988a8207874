/** Network namespaces for the benchmarks; what a run that was killed has left is removed by the next one. */
import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { DataPlane, type DataPlaneOptions } from "../ffi/data_plane.ts";
import { inNamespace } from "../ffi/netns.ts";
import { bpfObject } from "../host/installed.ts";
import { runSync } from "../host/run_to_end.ts";
import { onExit } from "./on_exit.ts";

const PREFIX = "colo-bench-";
const PINS = "/sys/fs/bpf/colo-bench";

const ip = (line: string): string => runSync("ip", ...line.split(" "));

/** Settings that would make the benchmark's frames meet others, or the host's packet filter. */
const QUIET = [
  "net.ipv6.conf.all.disable_ipv6=1",
  "net.ipv6.conf.default.disable_ipv6=1",
  // Only there if br_netfilter is loaded.
  "net.bridge.bridge-nf-call-iptables=0",
];

/** A namespace in which nothing speaks by itself; gone with close(), or with this process. */
export class BenchNamespace {
  /** As `ip netns` knows it. */
  readonly name: string;
  readonly #withdraw: () => void;

  constructor(name: string) {
    this.name = `${PREFIX}${process.pid}-${name}`;
    ip(`netns add ${this.name}`);
    this.#withdraw = onExit(() => this.#remove());
    for (const setting of QUIET) {
      const file = join("/proc/sys", setting.split("=")[0].replaceAll(".", "/"));
      if (this.run(() => existsSync(file)))
        runSync("nsenter", `--net=/run/netns/${this.name}`, "sysctl", "-qw", setting);
    }
    this.ip("link set lo up");
  }

  /** `ip` in this namespace. */
  ip(line: string): void {
    ip(`-n ${this.name} ${line}`);
  }

  /** `tc` in this namespace. */
  tc(line: string): void {
    runSync("tc", "-n", this.name, ...line.split(" "));
  }

  /** Runs `action` with this thread in the namespace; it must not be asynchronous. */
  run<T>(action: () => T): T {
    return inNamespace(this.name, action);
  }

  close(): void {
    this.#withdraw();
    this.#remove();
  }

  #remove(): void {
    if (existsSync(`/run/netns/${this.name}`)) ip(`netns del ${this.name}`);
  }
}

/** Loads a data plane whose pins go with unload(), or with this process. */
export function loadPlane(
  name: string,
  options: Omit<DataPlaneOptions, "objectPath" | "pinDirectory">,
): { plane: DataPlane; unload: () => void } {
  const pinDirectory = join(PINS, `${process.pid}-${name}`);
  const unpin = () => DataPlane.remove(pinDirectory, []);
  const withdraw = onExit(unpin);
  try {
    const plane = DataPlane.load({ objectPath: bpfObject(), pinDirectory, ...options });
    const unload = () => {
      plane.close();
      withdraw();
      unpin();
    };
    return { plane, unload };
  } catch (error) {
    withdraw();
    unpin();
    throw error;
  }
}

/** Namespaces and pins of benchmarks whose process has gone. */
export function removeLeftovers(): void {
  for (const [directory, remove] of [
    ["/run/netns", (entry: string) => void ip(`netns del ${entry}`)],
    [PINS, (entry: string) => rmSync(join(PINS, entry), { recursive: true, force: true })],
  ] as const) {
    if (!existsSync(directory)) continue;
    for (const entry of readdirSync(directory)) {
      const owner = (directory === PINS ? /^(\d+)-/ : /^colo-bench-(\d+)-/).exec(entry)?.[1];
      if (owner !== undefined && !existsSync(`/proc/${owner}`)) remove(entry);
    }
  }
}
