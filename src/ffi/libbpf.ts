/**
 * libbpf, version 1.0 or later (libbpf.so.1), as far as the data plane needs it.
 *
 * libbpf writes to standard error by itself; here it is silent, and what went wrong is in the exceptions: the
 * verifier's last words for a program, the system's answer for everything else.
 */
import { dlopen, FFIType, type Pointer } from "bun:ffi";
import { Arena, EEXIST, SystemError, temporaryString } from "./libc.ts";

const { i32, ptr, u32, u64 } = FFIType;

function open() {
  try {
    return dlopen("libbpf.so.1", {
      libbpf_set_print: { args: [ptr], returns: ptr },
      libbpf_major_version: { args: [], returns: u32 },
      libbpf_minor_version: { args: [], returns: u32 },
      libbpf_num_possible_cpus: { args: [], returns: i32 },
      bpf_object__open_file: { args: [ptr, ptr], returns: ptr },
      bpf_object__load: { args: [ptr], returns: i32 },
      bpf_object__close: { args: [ptr], returns: FFIType.void },
      bpf_object__find_map_by_name: { args: [ptr, ptr], returns: ptr },
      bpf_object__find_program_by_name: { args: [ptr, ptr], returns: ptr },
      bpf_map__fd: { args: [ptr], returns: i32 },
      bpf_map__max_entries: { args: [ptr], returns: u32 },
      bpf_map__set_max_entries: { args: [ptr, u32], returns: i32 },
      bpf_map__key_size: { args: [ptr], returns: u32 },
      bpf_map__value_size: { args: [ptr], returns: u32 },
      bpf_map__set_pin_path: { args: [ptr, ptr], returns: i32 },
      bpf_map__set_initial_value: { args: [ptr, ptr, u64], returns: i32 },
      bpf_program__fd: { args: [ptr], returns: i32 },
      bpf_program__set_log_buf: { args: [ptr, ptr, u64], returns: i32 },
      bpf_program__pin: { args: [ptr, ptr], returns: i32 },
      bpf_obj_get: { args: [ptr], returns: i32 },
      bpf_obj_get_info_by_fd: { args: [i32, ptr, ptr], returns: i32 },
      bpf_map_create: { args: [u32, ptr, u32, u32, u32, ptr], returns: i32 },
      bpf_map_get_fd_by_id: { args: [u32], returns: i32 },
      bpf_map_lookup_elem: { args: [i32, ptr, ptr], returns: i32 },
      bpf_map_update_elem: { args: [i32, ptr, ptr, u64], returns: i32 },
      bpf_map_delete_elem: { args: [i32, ptr], returns: i32 },
      bpf_map_lookup_and_delete_elem: { args: [i32, ptr, ptr], returns: i32 },
      bpf_map_lookup_batch: { args: [i32, ptr, ptr, ptr, ptr, ptr, ptr], returns: i32 },
      bpf_prog_test_run_opts: { args: [i32, ptr], returns: i32 },
      bpf_prog_load: { args: [i32, ptr, ptr, ptr, u64, ptr], returns: i32 },
      libbpf_probe_bpf_map_type: { args: [i32, ptr], returns: i32 },
      bpf_xdp_attach: { args: [i32, i32, u32, ptr], returns: i32 },
      bpf_tc_hook_create: { args: [ptr], returns: i32 },
      bpf_tc_attach: { args: [ptr, ptr], returns: i32 },
      bpf_tc_detach: { args: [ptr, ptr], returns: i32 },
    }).symbols;
  } catch (cause) {
    throw new Error("libbpf.so.1 cannot be loaded: install libbpf 1.0 or later (Debian: libbpf1).", {
      cause,
    });
  }
}

let loaded: ReturnType<typeof open> | undefined;

/** libbpf's functions; loads the library at the first call. */
export function libbpf(): ReturnType<typeof open> {
  if (loaded === undefined) {
    loaded = open();
    loaded.libbpf_set_print(null);
  }
  return loaded;
}

export function libbpfVersion(): { major: number; minor: number } {
  return { major: libbpf().libbpf_major_version(), minor: libbpf().libbpf_minor_version() };
}

/** Throws unless a libbpf call succeeded: it returns a negative error number. */
export function checkBpf(result: number, what: string): number {
  if (result < 0) throw new SystemError(what, -result);
  return result;
}

/** Throws unless a libbpf call returned an address. */
export function checkPointer(result: Pointer | bigint | null, what: string): Pointer {
  if (result === null || Number(result) === 0) throw new SystemError(what);
  return result as Pointer;
}

const INSTRUCTION = /^\d+: \(/;
const VERIFIER_LINES_MAX = 6;

/** The end of a verifier log: the source line it stopped at and its last words. */
export function lastVerifierLines(log: string): string {
  const lines = log
    .split("\n")
    .filter((line) => line.trim() !== "" && !/^(processed|verification time|stack depth)/.test(line));
  const source = lines.findLast((line) => line.startsWith(";"));
  const tail = lines
    .slice(-VERIFIER_LINES_MAX)
    .filter((line, i, all) => i >= all.length - 2 || INSTRUCTION.test(line));
  return [...(source === undefined || tail.includes(source) ? [] : [source]), ...tail].join("\n");
}

/** What a map is, from its descriptor (struct bpf_map_info). */
export function mapInfo(fd: number): {
  type: number;
  keyBytes: number;
  valueBytes: number;
  maxEntries: number;
} {
  const arena = new Arena(4096);
  try {
    const info = arena.allocate(256);
    const length = arena.allocate(4);
    arena.view.setUint32(length, 80, true);
    const result = libbpf().bpf_obj_get_info_by_fd(
      fd,
      (arena.address + info) as Pointer,
      (arena.address + length) as Pointer,
    );
    checkBpf(result, "Cannot ask the kernel about a map");
    return {
      type: arena.view.getUint32(info, true),
      keyBytes: arena.view.getUint32(info + 8, true),
      valueBytes: arena.view.getUint32(info + 12, true),
      maxEntries: arena.view.getUint32(info + 16, true),
    };
  } finally {
    arena.close();
  }
}

/** Opens what is pinned at `path`; -1 if nothing is. */
export function openPinned(path: string): number {
  const fd = libbpf().bpf_obj_get(temporaryString(path));
  return fd < 0 ? -1 : fd;
}

export const TC_INGRESS = 1;
export const TC_EGRESS = 2;
const TC_FLAG_REPLACE = 1;
const HOOK_BYTES = 24;
const OPTIONS_BYTES = 32;

/** One filter of ours at each hook, always the same: attaching again replaces it without a gap. */
const FILTER_HANDLE = 0xc010;
const FILTER_PRIORITY = 1;

function tcHook(arena: Arena, ifindex: number, point: number): Pointer {
  const hook = arena.allocate(HOOK_BYTES);
  arena.view.setBigUint64(hook, BigInt(HOOK_BYTES), true);
  arena.view.setInt32(hook + 8, ifindex, true);
  arena.view.setInt32(hook + 12, point, true);
  return (arena.address + hook) as Pointer;
}

function tcOptions(arena: Arena, programFd: number, flags: number): Pointer {
  const options = arena.allocate(OPTIONS_BYTES);
  arena.view.setBigUint64(options, BigInt(OPTIONS_BYTES), true);
  arena.view.setInt32(options + 8, programFd, true);
  arena.view.setUint32(options + 12, flags, true);
  arena.view.setUint32(options + 20, FILTER_HANDLE, true);
  arena.view.setUint32(options + 24, FILTER_PRIORITY, true);
  return (arena.address + options) as Pointer;
}

/**
 * Attaches a program as a direct-action filter; adds the clsact qdisc if there is none. In this thread's network
 * namespace.
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

const XDP_FLAGS_SKB_MODE = 2; // include/uapi/linux/if_link.h

/**
 * Attaches an XDP program that works on socket buffers ("generic XDP"), instead of one that is there. In this thread's
 * network namespace.
 */
export function attachXdp(ifindex: number, programFd: number): void {
  const attached = libbpf().bpf_xdp_attach(ifindex, programFd, XDP_FLAGS_SKB_MODE, null);
  checkBpf(attached, `Cannot attach an XDP program to interface ${ifindex}`);
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

/** A frame given to a program and what came of it; see DataPlane.testRun. */
export interface TestRun {
  verdict: number;
  frame: Uint8Array;
  mark: number;
}

const SK_BUFF_BYTES = 192; // struct __sk_buff in include/uapi/linux/bpf.h
const SK_BUFF = { mark: 8, ingressIfindex: 36, ifindex: 40 };

/** Offsets in struct bpf_test_run_opts of libbpf 1.0 (tools/lib/bpf/bpf.h). */
export const TEST_RUN = {
  size: 0,
  data_in: 8,
  data_out: 16,
  data_size_in: 24,
  data_size_out: 28,
  ctx_in: 32,
  ctx_out: 40,
  ctx_size_in: 48,
  ctx_size_out: 52,
  retval: 56,
  repeat: 60,
  flags: 68,
} as const;
export const TEST_RUN_BYTES = 80;

/** BPF_PROG_TEST_RUN for a tc program. */
export function runFilter(
  programFd: number,
  frame: Uint8Array,
  { mark = 0, ifindex = 0, repeat = 1 }: { mark?: number; ifindex?: number; repeat?: number },
): TestRun {
  const arena = new Arena(2 * frame.length + 8192);
  try {
    const { view, address } = arena;
    const outBytes = frame.length + 256;
    const input = arena.copy(frame);
    const output = arena.allocate(outBytes);
    const context = arena.allocate(SK_BUFF_BYTES);
    view.setUint32(context + SK_BUFF.mark, mark, true);
    view.setUint32(context + SK_BUFF.ifindex, ifindex, true);
    view.setUint32(context + SK_BUFF.ingressIfindex, ifindex, true);
    const contextOut = arena.allocate(SK_BUFF_BYTES);
    const options = arena.allocate(TEST_RUN_BYTES);
    view.setBigUint64(options + TEST_RUN.size, BigInt(TEST_RUN_BYTES), true);
    view.setBigUint64(options + TEST_RUN.data_in, BigInt(input), true);
    view.setBigUint64(options + TEST_RUN.data_out, BigInt(address + output), true);
    view.setUint32(options + TEST_RUN.data_size_in, frame.length, true);
    view.setUint32(options + TEST_RUN.data_size_out, outBytes, true);
    view.setBigUint64(options + TEST_RUN.ctx_in, BigInt(address + context), true);
    view.setBigUint64(options + TEST_RUN.ctx_out, BigInt(address + contextOut), true);
    view.setUint32(options + TEST_RUN.ctx_size_in, SK_BUFF_BYTES, true);
    view.setUint32(options + TEST_RUN.ctx_size_out, SK_BUFF_BYTES, true);
    view.setInt32(options + TEST_RUN.repeat, repeat, true);
    checkBpf(
      libbpf().bpf_prog_test_run_opts(programFd, (address + options) as Pointer),
      "Cannot run a BPF program on a test frame",
    );
    const written = view.getUint32(options + TEST_RUN.data_size_out, true);
    return {
      verdict: view.getInt32(options + TEST_RUN.retval, true),
      frame: arena.bytes.slice(output, output + written),
      mark: view.getUint32(contextOut + SK_BUFF.mark, true),
    };
  } finally {
    arena.close();
  }
}
