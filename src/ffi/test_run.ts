/** Runs a loaded program on a given frame: BPF_PROG_TEST_RUN (Documentation/bpf/bpf_prog_run.rst). */
import { checkBpf, libbpf } from "./libbpf.ts";
import { Arena } from "./libc.ts";

/** The result of a run; see DataPlane.testRun. */
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
      libbpf().bpf_prog_test_run_opts(programFd, address + options),
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
