/** The doctor's groups in their order, and one run of them. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Config } from "../config/config.ts";
import { bpfObject } from "../host/installed.ts";
import { arbiterGroup } from "./arbiter.ts";
import { bpfGroup } from "./bpf.ts";
import { certificatesGroup } from "./certificates.ts";
import { type DoctorContext, type Group, type Result, runChecks } from "./check.ts";
import { clockGroup } from "./clock.ts";
import { devicesGroup } from "./devices.ts";
import { kernelGroup } from "./kernel.ts";
import { kvmGroup } from "./kvm.ts";
import { linkGroup } from "./link.ts";
import { qemuGroup } from "./qemu.ts";
import { findQemu } from "./qemu_program.ts";
import { ScratchNamespace } from "./scratch_namespace.ts";
import { storageGroup } from "./storage.ts";
import { vmsGroup } from "./vms.ts";

export const GROUPS: readonly Group[] = [
  kernelGroup,
  bpfGroup,
  devicesGroup,
  kvmGroup,
  qemuGroup,
  clockGroup,
  linkGroup,
  arbiterGroup,
  certificatesGroup,
  storageGroup,
  vmsGroup,
];

interface DoctorOptions {
  config?: Config | undefined;
  /** Path of qemu-system-x86_64; default: the machine's own, else the one of scripts/setup. */
  qemu?: string | undefined;
  /** Names of groups to leave out. */
  skip?: readonly string[];
  onResult?: (result: Result) => void;
}

/** Examines this machine; what is made for it is removed again. */
export async function examine(options: DoctorOptions = {}): Promise<Result[]> {
  let directory: string | undefined;
  let namespace: Promise<ScratchNamespace> | undefined;
  const context: DoctorContext = {
    config: options.config,
    objectPath: bpfObject,
    qemu: () => findQemu(options.qemu, options.config),
    namespace: () => {
      namespace ??= ScratchNamespace.create();
      return namespace;
    },
    directory: () => {
      directory ??= mkdtempSync(join(tmpdir(), "colo-doctor-"));
      return directory;
    },
  };
  try {
    return await runChecks(GROUPS, context, options);
  } finally {
    // A check has failed with it already, or the next run removes it.
    await namespace?.then((one) => one.remove()).catch(() => undefined);
    if (directory !== undefined) rmSync(directory, { recursive: true, force: true });
  }
}
