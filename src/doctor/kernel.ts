/** The kernel, this process's rights, and the libraries. */
import { readFileSync } from "node:fs";
import { release } from "node:os";
import { explained } from "../errors/problem.ts";
import { Btf } from "../ffi/btf.ts";
import { libbpfVersion } from "../ffi/libbpf.ts";
import { pcapVersion } from "../ffi/pcap.ts";
import { type Check, type Finding, fail, type Group, ok, warn } from "./check.ts";

const KERNEL_MIN = [6, 2] as const;
const LIBBPF_MIN = [1, 0] as const;
/** From here on BPF memory counts for the cgroup, not for the limit (kernel/bpf/syscall.c). */
const KERNEL_WITHOUT_MEMLOCK = [5, 11] as const;
const MEMLOCK_BYTES = 256 << 20;

/** include/uapi/linux/capability.h */
const CAPABILITIES = {
  CAP_NET_ADMIN: 12, // interfaces, filters
  CAP_NET_RAW: 13, // sending released frames
  CAP_SYS_ADMIN: 21, // namespaces, mounting the BPF file system
  CAP_PERFMON: 38, // reading kernel structures in programs
  CAP_BPF: 39,
} as const;

function isAtLeast(version: readonly number[], minimum: readonly [number, number]): boolean {
  const [major = 0, minor = 0] = version;
  return major > minimum[0] || (major === minimum[0] && minor >= minimum[1]);
}

const numbersOf = (text: string): number[] => (text.match(/\d+/g) ?? []).map(Number);

function kernelVersion(): Finding {
  const version = release();
  if (isAtLeast(numbersOf(version), KERNEL_MIN)) return ok(`Linux ${version}`);
  return fail(`Linux ${version}`, `Use Linux ${KERNEL_MIN.join(".")} or later.`);
}

function typeInformation(): Finding {
  const found = Btf.ofKernel().ids(["sk_buff"]);
  return found.size > 0
    ? ok("the kernel has type information")
    : fail("the kernel's type information lacks sk_buff", "Use a kernel with CONFIG_DEBUG_INFO_BTF.");
}

function capabilities(): Finding {
  const status = readFileSync("/proc/self/status", "latin1");
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? "0"}`);
  const missing = Object.entries(CAPABILITIES).filter(([, bit]) => ((effective >> BigInt(bit)) & 1n) === 0n);
  if (missing.length === 0) return ok(`${Object.keys(CAPABILITIES).join(", ")}`);
  return fail(
    `missing: ${missing.map(([name]) => name).join(", ")}`,
    "Run it as root; in a container, give it these capabilities.",
  );
}

function memoryLock(): Finding {
  const limits = readFileSync("/proc/self/limits", "latin1");
  const [, soft = "0"] = /^Max locked memory\s+(\S+)/m.exec(limits) ?? [];
  const words = soft === "unlimited" ? soft : `${Math.round(Number(soft) / 1024)} KiB`;
  if (isAtLeast(numbersOf(release()), KERNEL_WITHOUT_MEMLOCK))
    return ok(`${words}; this kernel does not count BPF maps`);
  if (soft === "unlimited" || Number(soft) >= MEMLOCK_BYTES) return ok(words);
  return fail(`${words}; the packet rings need more`, "Set LimitMEMLOCK=infinity for the agent's service.");
}

function bpfLibrary(): Finding {
  const { major, minor } = libbpfVersion();
  if (isAtLeast([major, minor], LIBBPF_MIN)) return ok(`libbpf ${major}.${minor}`);
  return fail(`libbpf ${major}.${minor}`, "Install libbpf 1.0 or later (Debian: libbpf1).");
}

function pcapLibrary(): Finding {
  try {
    return ok(pcapVersion());
  } catch (error) {
    // Only `compare` and the export of divergences read captures.
    const { problem, advice } = explained(error);
    return warn(problem, advice ?? "Install libpcap 1.0 or later (Debian: libpcap0.8).");
  }
}

function programs(): Finding {
  const missing = ["ip", "ping"].filter((name) => Bun.which(name) === null);
  if (missing.length === 0) return ok("ip, ping");
  const fix = "Install iproute2 and iputils-ping.";
  return missing.includes("ip") ? fail("there is no ip", fix) : warn("there is no ping", fix);
}

const checks: Check[] = [
  { id: "version", title: "Kernel", run: kernelVersion },
  { id: "btf", title: "Kernel's types (BTF)", run: typeInformation },
  { id: "capabilities", title: "Capabilities", run: capabilities },
  { id: "memlock", title: "Locked memory", run: memoryLock },
  { id: "libbpf", title: "libbpf", run: bpfLibrary },
  { id: "libpcap", title: "libpcap", run: pcapLibrary },
  { id: "programs", title: "Programs", run: programs },
];

export const kernelGroup: Group = { name: "kernel", title: "Kernel and system", checks };
