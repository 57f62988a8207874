/** What the programs need of the running kernel (bpf/kernel.h), from its type information. */
import { Btf } from "./btf.ts";

const NEEDED_FUNCTIONS = ["bpf_cast_to_kern_ctx", "bpf_rdonly_cast"];
const COPY_FUNCTIONS = ["bpf_dynptr_from_skb", "bpf_dynptr_copy"];
const GSO_BITS = [
  "SKB_GSO_TCPV4",
  "SKB_GSO_TCPV6",
  "SKB_GSO_TCP_ECN",
  "SKB_GSO_UDP",
  "SKB_GSO_UDP_L4",
] as const;

export interface KernelFeatures {
  /** The kernel has no bpf_dynptr_copy (Linux before 6.15): frames are copied in chunks. */
  copyInChunks: boolean;
  /** The kernel's segmentation bits, SKB_GSO_*. */
  gso: Readonly<Record<(typeof GSO_BITS)[number], number>>;
}

let probed: KernelFeatures | undefined;

/** @throws Error with the functions or constants that the kernel lacks */
export function kernelFeatures(): KernelFeatures {
  if (probed !== undefined) return probed;
  const btf = Btf.ofKernel();
  const functions = btf.functions([...NEEDED_FUNCTIONS, ...COPY_FUNCTIONS]);
  const missing = NEEDED_FUNCTIONS.filter((name) => !functions.has(name));
  if (missing.length > 0) {
    throw new Error(
      `Linux 6.2 or later is needed: this kernel does not offer ${missing.join(" and ")} to BPF programs.`,
    );
  }
  const bits = btf.enumerators([...GSO_BITS]);
  const unknown = GSO_BITS.filter((name) => !bits.has(name));
  if (unknown.length > 0) {
    throw new Error(
      `The kernel's type information does not name ${unknown.join(", ")}: Linux 6.2 or later is needed.`,
    );
  }
  const gso = Object.fromEntries(bits) as KernelFeatures["gso"];
  probed = { gso, copyInChunks: COPY_FUNCTIONS.some((name) => !functions.has(name)) };
  return probed;
}
