/**
 * Whether KVM runs a guest, by running some: opening /dev/kvm says nothing (a nested one may open and then
 * hang).
 */
import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { guestKernel } from "../host/installed.ts";
import { type Check, type DoctorContext, type Finding, type Group, ok, once, warn } from "./check.ts";
import { lastLine, runGuest } from "./qemu_program.ts";
import { EXIT_DEVICE, EXIT_STATUS, exitingGuest } from "./tiny_guest.ts";

const CODE_LIMIT_MS = 3_000;
const KERNEL_LIMIT_MS = 6_000;

const WITHOUT_KVM =
  "Enable virtualization in the firmware, or nested virtualization on the host of this machine. Software " +
  "emulation (TCG) is for tests only: it is slow, and its secondary fails without the plugin of " +
  "`colo-agent lab`.";

const BARE = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-accel", "kvm"];

/** A few instructions in real mode. */
const tryCode = once(async (context: DoctorContext): Promise<Finding> => {
  if (!existsSync("/dev/kvm"))
    return warn("there is no /dev/kvm", `Load kvm_intel or kvm_amd. ${WITHOUT_KVM}`);
  const bios = join(context.directory(), "exit.bin");
  writeFileSync(bios, exitingGuest());
  const run = await runGuest(
    context.qemu(),
    [...BARE, "-m", "16M", "-bios", bios, ...EXIT_DEVICE],
    CODE_LIMIT_MS,
  );
  if (run.status === EXIT_STATUS)
    return ok(`seven instructions ran, QEMU ended after ${seconds(run.tookMs)}`);
  if (run.status === undefined)
    return warn(`KVM hangs: seven instructions did not end within ${CODE_LIMIT_MS / 1000} s`, WITHOUT_KVM);
  const words = run.complaint.split("\n").at(-1) ?? "";
  return warn(`KVM does not run a guest (status ${run.status}): ${words}`, WITHOUT_KVM);
});

/**
 * A Linux kernel without anything else: it ends with a panic, for want of a root file system, which ends
 * QEMU.
 */
const tryKernel = once(async (context: DoctorContext): Promise<Finding> => {
  if (!existsSync("/dev/kvm")) return warn("there is no /dev/kvm", WITHOUT_KVM);
  const kernel = anyKernel();
  if (kernel === undefined) return ok("no kernel to test (neither the lab's nor one in /boot)");
  const serial = join(context.directory(), "kvm-serial.log");
  const run = await runGuest(
    context.qemu(),
    [
      ...BARE,
      ...["-cpu", "host", "-m", "256M", "-no-reboot", "-serial", `file:${serial}`],
      ...["-kernel", kernel, "-append", "console=ttyS0 panic=-1"],
    ],
    KERNEL_LIMIT_MS,
  );
  if (run.status === 0) return ok(`a Linux kernel booted and ended in ${seconds(run.tookMs)}`);
  const last = lastLine(serial);
  const at = last === "" ? "it printed nothing" : `last output: ${last.slice(0, 100)}`;
  if (run.status === undefined) {
    return warn(
      `KVM hangs: a Linux kernel did not boot within ${KERNEL_LIMIT_MS / 1000} s; ${at}`,
      WITHOUT_KVM,
    );
  }
  return warn(`KVM does not boot Linux (status ${run.status}): ${run.complaint || at}`, WITHOUT_KVM);
});

function anyKernel(): string | undefined {
  try {
    return guestKernel();
  } catch {
    // scripts/setup was not run here; any kernel shows whether KVM works.
    const name = readdirSync("/boot", { encoding: "utf8" }).find((one) => one.startsWith("vmlinuz"));
    return name === undefined ? undefined : join("/boot", name);
  }
}

const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`;

const checks: Check[] = [
  { id: "code", title: "KVM runs code", run: tryCode },
  { id: "linux", title: "KVM boots Linux", timeoutMs: 20_000, run: tryKernel },
];

export const kvmGroup: Group = { name: "kvm", title: "KVM", checks };

/** "kvm" if both kinds of guests run. */
export async function acceleratorOf(context: DoctorContext): Promise<"kvm" | "tcg"> {
  for (const attempt of [tryCode, tryKernel]) if ((await attempt(context)).status !== "ok") return "tcg";
  return "kvm";
}
