/**
 * Attaches BPF programs to network interfaces: filters of the tc subsystem, and XDP. In the thread's
 * namespace.
 */
import { checkBpf, libbpf } from "./libbpf.ts";
import { Arena, EEXIST } from "./libc.ts";
import type { Address } from "./native.ts";

export const TC_INGRESS = 1;
export const TC_EGRESS = 2;
const TC_FLAG_REPLACE = 1;
/** struct bpf_tc_hook and struct bpf_tc_opts of libbpf 1.0 (tools/lib/bpf/libbpf.h). */
const HOOK = { size: 0, ifindex: 8, point: 12 } as const;
const HOOK_BYTES = 24;
const OPTIONS = { size: 0, programFd: 8, flags: 12, programId: 16, handle: 20, priority: 24 } as const;
const OPTIONS_BYTES = 32;

/** One filter of ours at each hook, always the same: attaching again replaces it without a gap. */
const FILTER_HANDLE = 0xc010;
const FILTER_PRIORITY = 1;

const XDP_FLAGS_SKB_MODE = 2; // include/uapi/linux/if_link.h

function tcHook(arena: Arena, ifindex: number, point: number): Address {
  const hook = arena.allocate(HOOK_BYTES);
  arena.view.setBigUint64(hook + HOOK.size, BigInt(HOOK_BYTES), true);
  arena.view.setInt32(hook + HOOK.ifindex, ifindex, true);
  arena.view.setInt32(hook + HOOK.point, point, true);
  return arena.address + hook;
}

function tcOptions(arena: Arena, programFd: number, flags: number): Address {
  const options = arena.allocate(OPTIONS_BYTES);
  arena.view.setBigUint64(options + OPTIONS.size, BigInt(OPTIONS_BYTES), true);
  arena.view.setInt32(options + OPTIONS.programFd, programFd, true);
  arena.view.setUint32(options + OPTIONS.flags, flags, true);
  arena.view.setUint32(options + OPTIONS.handle, FILTER_HANDLE, true);
  arena.view.setUint32(options + OPTIONS.priority, FILTER_PRIORITY, true);
  return arena.address + options;
}

/**
 * Attaches a program as a direct-action filter; adds the clsact qdisc if there is none.
 *
 * @param point TC_INGRESS or TC_EGRESS
 */
export function attachFilter(ifindex: number, point: number, programFd: number): void {
  const arena = new Arena(4096);
  try {
    const hook = tcHook(arena, ifindex, point);
    // clsact has both hooks; with only one named here libbpf creates the same qdisc.
    const created = libbpf().bpf_tc_hook_create(hook);
    if (created < 0 && created !== -EEXIST) checkBpf(created, `Cannot add clsact to interface ${ifindex}`);
    const attached = libbpf().bpf_tc_attach(hook, tcOptions(arena, programFd, TC_FLAG_REPLACE));
    checkBpf(attached, `Cannot attach a BPF filter to interface ${ifindex}`);
  } finally {
    arena.close();
  }
}

/** Number of the program in our filter; undefined if there is none. */
export function attachedProgram(ifindex: number, point: number): number | undefined {
  const arena = new Arena(4096);
  try {
    const options = tcOptions(arena, 0, 0);
    const hook = tcHook(arena, ifindex, point);
    // Without a filter, a qdisc or a classifier at the hook each kernel has another error.
    if (libbpf().bpf_tc_query(hook, options) < 0) return undefined;
    return arena.view.getUint32(options - arena.address + OPTIONS.programId, true);
  } finally {
    arena.close();
  }
}

/** Removes our filter, if it is there. The qdisc stays: others may use it. */
export function detachFilter(ifindex: number, point: number): void {
  const arena = new Arena(4096);
  try {
    libbpf().bpf_tc_detach(tcHook(arena, ifindex, point), tcOptions(arena, 0, 0));
  } finally {
    arena.close();
  }
}

/** Attaches an XDP program that works on socket buffers ("generic XDP"); replaces the one that is there. */
export function attachXdp(ifindex: number, programFd: number): void {
  const attached = libbpf().bpf_xdp_attach(ifindex, programFd, XDP_FLAGS_SKB_MODE, null);
  checkBpf(attached, `Cannot attach an XDP program to interface ${ifindex}`);
}
