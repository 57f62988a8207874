/** The four ways in which the same guest is run for `bench vm`. */
import { Lab } from "../lab/lab.ts";
import type { LabNamespaces } from "../lab/network.ts";
import { isAlive } from "../qemu/process.ts";
import { PATIENT_AGENTS, PATIENT_CHECKPOINTS } from "./labs.ts";
import { QemuPair } from "./qemu_pair.ts";
import type { Subject } from "./result.ts";

const NAME = "bench-vm";
const NAME_OF_SECOND = "bench-vm2";
/** Every lab and pair that a way starts. */
export const VM_LABS = [NAME, NAME_OF_SECOND] as const;

const MEMORY_MIB = 256;
/**
 * Emulated without KVM, a guest that never leaves its one busy process runs on with the software TLB that it
 * happens to have: QEMU changes the size of that only when the guest switches, or at a checkpoint, which
 * makes it as small as an idle guest needs (docs/performance.md). So the guests of all ways have a second
 * process.
 */
const APPEND = "colo.switches=50";

type Progress = (subject: Subject, step: string) => void;

/** A way that is up. */
export interface RunningWay {
  subject: Subject;
  /** Where clients are; the guest at the first one is measured, the others get the same traffic meanwhile. */
  labs: readonly { namespaces: LabNamespaces }[];
  /** What uses CPU time for the one VM; a name may come twice. */
  processes: readonly { name: "primary's QEMU" | "secondary's QEMU" | "agents"; pid: number }[];
  /** QMP socket of the measured VM, for the benchmark alone. */
  qmp: string;
  /** Whether all QEMUs still run. */
  alive(): boolean;
}

/** Starts one way after the other; each is up while its turn of the loop lasts. */
export async function* startWays(progress: Progress): AsyncGenerator<RunningWay, void> {
  yield* unprotected(progress);
  yield* withQemuProxy(progress);
  yield* withAgents(progress);
}

/** The second VM joins the first: booting is what takes the time here. */
async function* unprotected(progress: Progress): AsyncGenerator<RunningWay, void> {
  const labs: Lab[] = [];
  try {
    for (const [name, subject] of [
      [NAME, "none"],
      [NAME_OF_SECOND, "two-vms"],
    ] as const) {
      labs.push(
        await Lab.up({ name, memoryMib: MEMORY_MIB, append: APPEND, proxy: "none" }, (step) =>
          progress(subject, step),
        ),
      );
      const qemus = labs.map((lab) => lab.process("qemu-a")!);
      yield {
        subject,
        labs,
        processes: qemus.map(({ pid }, index) => ({
          name: index === 0 ? "primary's QEMU" : "secondary's QEMU",
          pid,
        })),
        qmp: labs[0]!.host("a").qmp!,
        alive: () => qemus.every(isAlive),
      };
    }
  } finally {
    for (const name of VM_LABS) await Lab.down(name);
  }
}

async function* withQemuProxy(progress: Progress): AsyncGenerator<RunningWay, void> {
  const step = (text: string) => progress("qemu", text);
  const pair = await QemuPair.up({ name: NAME, memoryMib: MEMORY_MIB, append: APPEND, proxy: true }, step);
  try {
    // The first ones copy all memory; the agent makes two as well before it calls the VM protected.
    step("first checkpoints");
    for (let count = 0; count < 2; count++) await pair.checkpoint();
    yield {
      subject: "qemu",
      labs: [pair],
      processes: [
        { name: "primary's QEMU", pid: pair.pid("a") },
        { name: "secondary's QEMU", pid: pair.pid("b") },
      ],
      qmp: pair.spareQmp("a"),
      alive: () => pair.alive,
    };
  } finally {
    await pair.down();
  }
}

async function* withAgents(progress: Progress): AsyncGenerator<RunningWay, void> {
  const lab = await Lab.up(
    {
      name: NAME,
      memoryMib: MEMORY_MIB,
      append: APPEND,
      proxy: "agent",
      agentConfig: PATIENT_AGENTS,
      vmConfig: `checkpoint = { ${PATIENT_CHECKPOINTS} }`,
    },
    (step) => progress("colo-agent", step),
  );
  try {
    const [a, b] = [lab.host("a"), lab.host("b")];
    const qemus = [lab.process("qemu-a")!, lab.process("qemu-b")!] as const;
    yield {
      subject: "colo-agent",
      labs: [lab],
      processes: [
        { name: "primary's QEMU", pid: qemus[0].pid },
        { name: "secondary's QEMU", pid: qemus[1].pid },
        { name: "agents", pid: a.agent!.pid },
        { name: "agents", pid: b.agent!.pid },
      ],
      qmp: a.qmp,
      alive: () => qemus.every(isAlive),
    };
  } finally {
    await Lab.down(NAME);
  }
}
