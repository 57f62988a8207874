/** The four ways in which the same guest is run for `bench vm`. */
import { Lab } from "../lab/lab.ts";
import type { LabNamespaces } from "../lab/network.ts";
import { QemuPair } from "./qemu_pair.ts";
import type { Subject } from "./result.ts";

const NAME = "bench-vm";
const NAME_OF_SECOND = "bench-vm2";
/** Every lab and pair that a way starts. */
export const VM_LABS = [NAME, NAME_OF_SECOND] as const;

const MEMORY_MIB = 256;

/** A way that is up. */
export interface RunningWay {
  /** Where clients are; the guest at the first one is measured, the others get the same traffic meanwhile. */
  labs: readonly { namespaces: LabNamespaces }[];
  /** What uses CPU time for the one VM; a name may come twice. */
  processes: readonly { name: "primary's QEMU" | "secondary's QEMU" | "agents"; pid: number }[];
  /** QMP socket of the measured VM, for the benchmark alone. */
  qmp: string;
  alive(): boolean;
  down(): Promise<void>;
}

export interface Way {
  subject: Subject;
  up(progress: (step: string) => void): Promise<RunningWay>;
}

async function unprotected(names: readonly string[], progress: (step: string) => void): Promise<RunningWay> {
  const labs: Lab[] = [];
  for (const name of names) labs.push(await Lab.up({ name, memoryMib: MEMORY_MIB, proxy: "none" }, progress));
  const qemu = (lab: Lab) => lab.host("a").qemu!.pid;
  return {
    labs,
    processes: labs.map((lab, index) => ({
      name: index === 0 ? "primary's QEMU" : "secondary's QEMU",
      pid: qemu(lab),
    })),
    qmp: labs[0]!.host("a").qmp!,
    alive: () => true,
    down: async () => {
      for (const name of names) await Lab.down(name);
    },
  };
}

async function withQemuProxy(progress: (step: string) => void): Promise<RunningWay> {
  const pair = await QemuPair.up({ name: NAME, memoryMib: MEMORY_MIB, proxy: true }, progress);
  // The first ones copy all memory; the agent makes two as well before it calls the VM protected.
  progress("first checkpoints");
  for (let count = 0; count < 2; count++) await pair.checkpoint();
  return {
    labs: [pair],
    processes: [
      { name: "primary's QEMU", pid: pair.pid("a") },
      { name: "secondary's QEMU", pid: pair.pid("b") },
    ],
    qmp: pair.spareQmp("a"),
    alive: () => pair.alive,
    down: () => pair.down(),
  };
}

async function withAgents(progress: (step: string) => void): Promise<RunningWay> {
  const lab = await Lab.up({ name: NAME, memoryMib: MEMORY_MIB, proxy: "agent" }, progress);
  const [a, b] = [lab.host("a"), lab.host("b")];
  return {
    labs: [lab],
    processes: [
      { name: "primary's QEMU", pid: a.qemu!.pid },
      { name: "secondary's QEMU", pid: b.qemu!.pid },
      { name: "agents", pid: a.agent!.pid },
      { name: "agents", pid: b.agent!.pid },
    ],
    qmp: a.qmp!,
    alive: () => true,
    down: async () => void (await Lab.down(NAME)),
  };
}

export const WAYS: readonly Way[] = [
  { subject: "none", up: (progress) => unprotected([NAME], progress) },
  { subject: "two-vms", up: (progress) => unprotected([NAME, NAME_OF_SECOND], progress) },
  { subject: "qemu", up: withQemuProxy },
  { subject: "colo-agent", up: withAgents },
];
