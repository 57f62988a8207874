/** QEMU: what it says of itself, and what it does when two of it are made a COLO pair. */
import { createServer } from "node:net";
import { join } from "node:path";
import { checkQemu, QEMU_THAT_WORKS, type QemuFacts } from "../colo/check.ts";
import {
  prepareSecondary,
  primaryFailover,
  requestCheckpoint,
  secondaryFailover,
  startProtection,
} from "../colo/index.ts";
import { QmpClosedError } from "../qmp/errors.ts";
import { type Check, type DoctorContext, type Finding, fail, failed, type Group, ok, warn } from "./check.ts";
import { acceleratorOf } from "./kvm.ts";
import { TinyQemu } from "./tiny_qemu.ts";

const HOST = "127.0.0.1";
const CHECKPOINT_LIMIT_MS = 10_000;
const PAIR_LIMIT_MS = 60_000;

function versionWords({ version }: QemuFacts): string {
  return `QEMU ${version.major}.${version.minor}.${version.micro}`;
}

async function program(context: DoctorContext): Promise<Finding[]> {
  const qemu = context.qemu();
  const one = await TinyQemu.start(qemu, "tcg", "primary", join(context.directory(), "qemu-asked"));
  try {
    const facts = await checkQemu(one.client);
    const words = `${versionWords(facts)} (${qemu.description})`;
    const replication = facts.blockReplication
      ? ok("nbd, quorum and replication are compiled in")
      : fail(
          "its disks cannot be replicated: nbd, quorum or replication is missing",
          `Use ${QEMU_THAT_WORKS}.`,
        );
    return [
      facts.verdict.verdict === "works" ? ok(words) : warn(facts.verdict.sentence, `Use ${QEMU_THAT_WORKS}.`),
      { ...replication, subject: "disk replication" },
    ];
  } catch (error) {
    // The sentences of src/colo/check.ts say what to take instead.
    return [failed(error, `Use ${QEMU_THAT_WORKS}.`)];
  } finally {
    await one.kill();
  }
}

/** Ports that nobody listens on. */
async function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, HOST, () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

async function enterColo(primary: TinyQemu, secondary: TinyQemu): Promise<void> {
  const migratePort = await freePort();
  await prepareSecondary(secondary.client, { migrateHost: HOST, migratePort });
  await startProtection(primary.client, { migrateHost: HOST, migratePort, switchoverMs: 10_000 });
}

/** @returns how long the VM stood still, in milliseconds */
async function checkpoint(primary: TinyQemu): Promise<number> {
  const wait = (name: string) => primary.client.waitFor(name, () => true, CHECKPOINT_LIMIT_MS);
  const ends = Promise.all([wait("STOP"), wait("RESUME")]);
  await requestCheckpoint(primary.client);
  const [stop, resume] = await ends;
  return Number(resume.timestampNs - stop.timestampNs) / 1e6;
}

/** Two pairs: the first loses its secondary, the second, made with the survivor, its primary. */
async function pair(context: DoctorContext): Promise<Finding> {
  const begun = performance.now();
  const accelerator = await acceleratorOf(context);
  const running: TinyQemu[] = [];
  const start = async (role: "primary" | "secondary") => {
    const directory = join(context.directory(), `pair-${running.length}`);
    const one = await TinyQemu.start(context.qemu(), accelerator, role, directory);
    running.push(one);
    return one;
  };
  let step = "starting two QEMUs";
  try {
    const primary = await start("primary");
    await checkQemu(primary.client);
    for (const loss of ["secondary", "primary"] as const) {
      const secondary = await start("secondary");
      step = "entering COLO";
      await enterColo(primary, secondary);
      step = "a checkpoint";
      await checkpoint(primary); // copies all memory
      const pauseMs = await checkpoint(primary);
      await primary.goesOn();
      step = `the failover when the ${loss} is lost`;
      if (loss === "secondary") {
        await secondary.kill();
        await primaryFailover(primary.client);
        await primary.goesOn();
      } else {
        await primary.kill();
        await secondaryFailover(secondary.client, { disks: false });
        await secondary.goesOn();
        return ok(
          `entered COLO, made checkpoints (pause ${pauseMs.toFixed(0)} ms), survived the loss of either ` +
            `side; with ${accelerator === "kvm" ? "KVM" : "TCG"}, in ` +
            `${((performance.now() - begun) / 1000).toFixed(1)} s`,
        );
      }
    }
    throw new Error("the pair was not tried");
  } catch (error) {
    const why = error instanceof QmpClosedError ? "QEMU ended" : (error as Error).message;
    return fail(`${step}: ${why}`, `Use ${QEMU_THAT_WORKS}.`);
  } finally {
    for (const one of running) await one.kill();
  }
}

const checks: Check[] = [
  { id: "version", title: "QEMU", run: program },
  { id: "pair", title: "A pair of QEMUs", timeoutMs: PAIR_LIMIT_MS, run: pair },
];

export const qemuGroup: Group = { name: "qemu", title: "QEMU", checks };
