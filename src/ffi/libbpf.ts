/**
 * libbpf, version 1.0 or later (libbpf.so.1), as far as the data plane needs it.
 *
 * libbpf writes to standard error by itself; here it is silent. The exceptions say what went wrong: the
 * verifier's last lines for a program, the system's error for everything else.
 */

import { FFIType } from "bun:ffi";
import { Problem } from "../errors/problem.ts";
import { SystemError } from "./libc.ts";
import { type Address, openLibrary } from "./native.ts";

const { i32, ptr, u32, u64 } = FFIType;

function open() {
  try {
    return openLibrary("libbpf.so.1", {
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
      bpf_map_lookup_and_delete_elem: { args: [i32, ptr, ptr], returns: i32 },
      bpf_map_lookup_batch: { args: [i32, ptr, ptr, ptr, ptr, ptr, ptr], returns: i32 },
      bpf_prog_test_run_opts: { args: [i32, ptr], returns: i32 },
      bpf_prog_get_fd_by_id: { args: [u32], returns: i32 },
      bpf_prog_load: { args: [i32, ptr, ptr, ptr, u64, ptr], returns: i32 },
      libbpf_probe_bpf_map_type: { args: [i32, ptr], returns: i32 },
      bpf_xdp_attach: { args: [i32, i32, u32, ptr], returns: i32 },
      bpf_tc_hook_create: { args: [ptr], returns: i32 },
      bpf_tc_attach: { args: [ptr, ptr], returns: i32 },
      bpf_tc_query: { args: [ptr, ptr], returns: i32 },
      bpf_tc_detach: { args: [ptr, ptr], returns: i32 },
    });
  } catch (cause) {
    throw new Problem("libbpf.so.1 cannot be loaded", "install libbpf 1.0 or later (Debian: libbpf1)", {
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
export function checkPointer(result: Address | bigint | null, what: string): Address {
  if (result === null || Number(result) === 0) throw new SystemError(what);
  return Number(result);
}
