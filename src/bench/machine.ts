/** What the figures were measured on: without it they mean nothing. */
import { readFileSync } from "node:fs";
import { cpus, loadavg, release } from "node:os";
import { qemuArgv, qemuEnvironment } from "../host/installed.ts";

interface BenchMachine {
  cpu: string;
  cores: number;
  /** Empty on bare metal. */
  hypervisor: string;
  kernel: string;
  bun: string;
  /** Undefined if there is none to run. */
  qemu: string | undefined;
  /** Runnable tasks, mean of the last minute: above 0.5 or so somebody else is at work. */
  load: number;
}

export function benchMachine(): BenchMachine {
  const processors = cpus();
  return {
    cpu: processors[0]?.model.trim() ?? "unknown CPU",
    cores: processors.length,
    hypervisor: /^flags\s*:.*\bhypervisor\b/m.test(readFileSync("/proc/cpuinfo", "latin1"))
      ? "virtual machine"
      : "",
    kernel: release(),
    bun: Bun.version,
    qemu: qemuVersion(),
    load: loadavg()[0],
  };
}

/** One line for people. */
export function machineLine(machine: BenchMachine): string {
  const { cpu, cores, hypervisor, kernel, bun, qemu, load } = machine;
  return [
    `${cpu}, ${cores} ${cores === 1 ? "core" : "cores"}${hypervisor === "" ? "" : ` (${hypervisor})`}`,
    `Linux ${kernel}`,
    `Bun ${bun}`,
    qemu === undefined ? "no QEMU" : `QEMU ${qemu}`,
    `load ${load.toFixed(1)} before`,
  ].join(" · ");
}

/** As it names itself, for example "11.1.2". */
function qemuVersion(): string | undefined {
  try {
    const { stdout } = Bun.spawnSync([...qemuArgv(), "--version"], { env: qemuEnvironment() });
    return /version (\d+(?:\.\d+)+)/.exec(stdout.toString())?.[1];
  } catch {
    // There is no QEMU here.
    return undefined;
  }
}
