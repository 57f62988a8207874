/** Network namespaces for the benchmarks; what a run that was killed has left is removed by the next one. */
import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";

const PREFIX = "colo-bench-";
const PINS = "/sys/fs/bpf/colo-bench";

/** Runs a command; throws an Error with its complaint. */
function run(...command: string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command);
  if (exitCode !== 0) {
    throw new Error(`${command.join(" ")}: ${stderr.toString().trim() || `exit status ${exitCode}`}`);
  }
  return stdout.toString();
}

/** `ip` with a line of arguments. */
export const ip = (line: string): string => run("ip", ...line.split(" "));

/** Full name of a namespace of this process. */
export const namespaceName = (name: string): string => `${PREFIX}${process.pid}-${name}`;

/** Where a data plane of this process pins its maps. */
export const pinDirectory = (name: string): string => join(PINS, `${process.pid}-${name}`);

/** Makes a namespace in which nothing speaks by itself. */
export function addNamespace(name: string): string {
  const full = namespaceName(name);
  ip(`netns add ${full}`);
  for (const scope of ["all", "default"]) {
    const setting = `net.ipv6.conf.${scope}.disable_ipv6=1`;
    run("nsenter", `--net=/run/netns/${full}`, "sysctl", "-qw", setting);
  }
  ip(`-n ${full} link set lo up`);
  return full;
}

/** Removes a namespace with the interfaces in it, if it is there. */
export function removeNamespace(name: string): void {
  const full = namespaceName(name);
  if (existsSync(`/run/netns/${full}`)) ip(`netns del ${full}`);
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
