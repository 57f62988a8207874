/** What the running kernel takes of BPF, found out by loading programs and making maps. */
import { Btf } from "./btf.ts";
import { libbpf } from "./libbpf.ts";
import { Arena, closeFd, errorText, textAt } from "./libc.ts";

/** BPF_PROG_TYPE_SCHED_CLS, BPF_PROG_TYPE_XDP */
const PROGRAM_TYPES = { tc: 3, xdp: 6 } as const;
type ProgramType = keyof typeof PROGRAM_TYPES;
const MAP_RINGBUF = 27; // BPF_MAP_TYPE_RINGBUF
const INSTRUCTION_BYTES = 8;
const CALL = 0x85; // BPF_JMP | BPF_CALL
const PSEUDO_KFUNC_CALL = 2;
const PROBED = 1;

/** Whether the kernel makes ring buffers. */
export function ringBufferWorks(): boolean {
  return libbpf().libbpf_probe_bpf_map_type(MAP_RINGBUF, null) === PROBED;
}

/**
 * Whether programs of a type may call this helper function. A program that only calls it is refused in any
 * case, for its arguments; what counts is whether the verifier knows the helper (kernel/bpf/verifier.c,
 * check_helper_call). libbpf's own probe does not know the words of Linux 6.14 and later.
 */
export function helperWorks(id: number, type: ProgramType): boolean {
  const { fd, log } = loadProgram([[CALL, 0, 0, 0, id], exit], type);
  if (fd >= 0) closeFd(fd);
  return fd >= 0 || !/unknown func|invalid func|cannot use helper/.test(log);
}

/** Instruction words, see include/uapi/linux/bpf.h, struct bpf_insn. */
type Instruction = [code: number, destination: number, source: number, offset: number, immediate: number];

const mov = (destination: number, source: number): Instruction => [0xbf, destination, source, 0, 0];
const movImmediate = (destination: number, value: number): Instruction => [0xb7, destination, 0, 0, value];
const addImmediate = (destination: number, value: number): Instruction => [0x07, destination, 0, 0, value];
const call = (btfId: number): Instruction => [CALL, 0, PSEUDO_KFUNC_CALL, 0, btfId];
const exit: Instruction = [0x95, 0, 0, 0, 0];
const STACK = 10;
const DYNPTR = -16;

/** Kernel functions that the programs call, each with the smallest program that does so. */
const KERNEL_FUNCTIONS = {
  bpf_cast_to_kern_ctx: (id) => [call(id("bpf_cast_to_kern_ctx"))],
  bpf_rdonly_cast: (id) => [
    call(id("bpf_cast_to_kern_ctx")),
    mov(1, 0),
    movImmediate(2, id("sk_buff")),
    call(id("bpf_rdonly_cast")),
  ],
  bpf_dynptr_from_skb: (id) => [...dynptrFromSkb(id)],
  bpf_dynptr_copy: (id) => [
    ...dynptrFromSkb(id),
    mov(1, STACK),
    addImmediate(1, DYNPTR),
    movImmediate(2, 0),
    mov(3, 1),
    movImmediate(4, 0),
    movImmediate(5, 1),
    call(id("bpf_dynptr_copy")),
  ],
} satisfies Record<string, (id: (name: string) => number) => Instruction[]>;

function dynptrFromSkb(id: (name: string) => number): Instruction[] {
  return [movImmediate(2, 0), mov(3, STACK), addImmediate(3, DYNPTR), call(id("bpf_dynptr_from_skb"))];
}

type KernelFunction = keyof typeof KERNEL_FUNCTIONS;

/** Undefined if the kernel loads a tc program that calls it, else why not. */
export function kernelFunctionRefused(name: KernelFunction): string | undefined {
  const ids = Btf.ofKernel().ids([...Object.keys(KERNEL_FUNCTIONS), "sk_buff"]);
  const id = (wanted: string): number => {
    const found = ids.get(wanted);
    if (found === undefined) throw new Error(`the kernel has no ${wanted}`);
    return found;
  };
  let program: Instruction[];
  try {
    program = [...KERNEL_FUNCTIONS[name](id), movImmediate(0, 0), exit];
  } catch (error) {
    return (error as Error).message;
  }
  const { fd } = loadProgram(program);
  if (fd < 0) return `the kernel refuses a program that calls it: ${errorText(-fd)}`;
  closeFd(fd);
  return undefined;
}

/** struct bpf_prog_load_opts of libbpf 1.0. */
const LOAD_OPTIONS_BYTES = 104;
const LOAD_OPTIONS = { logLevel: 88, logBytes: 92, log: 96 };
const LOG_BYTES = 4096;

/** @returns the program's descriptor, or a negative error number; the verifier's words */
function loadProgram(program: readonly Instruction[], type: ProgramType = "tc"): { fd: number; log: string } {
  const arena = new Arena(16_384);
  try {
    const { view, address } = arena;
    const at = arena.allocate(program.length * INSTRUCTION_BYTES);
    program.forEach(([code, destination, source, offset, immediate], i) => {
      const instruction = at + i * INSTRUCTION_BYTES;
      view.setUint8(instruction, code);
      view.setUint8(instruction + 1, destination | (source << 4));
      view.setInt16(instruction + 2, offset, true);
      view.setInt32(instruction + 4, immediate, true);
    });
    const log = arena.allocate(LOG_BYTES);
    const options = arena.allocate(LOAD_OPTIONS_BYTES);
    view.setBigUint64(options, BigInt(LOAD_OPTIONS_BYTES), true);
    view.setUint32(options + LOAD_OPTIONS.logLevel, 1, true);
    view.setUint32(options + LOAD_OPTIONS.logBytes, LOG_BYTES, true);
    view.setBigUint64(options + LOAD_OPTIONS.log, BigInt(address + log), true);
    const fd = libbpf().bpf_prog_load(
      PROGRAM_TYPES[type],
      arena.string("doctor"),
      arena.string("GPL"),
      address + at,
      program.length,
      address + options,
    );
    return { fd, log: textAt(address + log) };
  } finally {
    arena.close();
  }
}

export const KERNEL_FUNCTION_NAMES = Object.keys(KERNEL_FUNCTIONS) as KernelFunction[];

const ELF_MAGIC = 0x464c457f;
const SECTION_PROGBITS = 1;
const SECTION_EXECUTABLE = 4;

/**
 * Numbers of the helper functions that the programs of each type call in a compiled BPF object (64-bit
 * little-endian ELF). Functions of their own (section .text) are those of tc programs.
 */
export function helpersOf(object: Uint8Array): Record<ProgramType, number[]> {
  const view = new DataView(object.buffer, object.byteOffset, object.byteLength);
  if (view.getUint32(0, true) !== ELF_MAGIC) throw new Error("this is no ELF object");
  const table = Number(view.getBigUint64(0x28, true));
  const entryBytes = view.getUint16(0x3a, true);
  const count = view.getUint16(0x3c, true);
  const names = Number(view.getBigUint64(table + view.getUint16(0x3e, true) * entryBytes + 0x18, true));
  const helpers: Record<ProgramType, Set<number>> = { tc: new Set(), xdp: new Set() };
  for (let section = table; section < table + count * entryBytes; section += entryBytes) {
    const executable = (view.getBigUint64(section + 8, true) & BigInt(SECTION_EXECUTABLE)) !== 0n;
    if (view.getUint32(section + 4, true) !== SECTION_PROGBITS || !executable) continue;
    const name = textOf(object, names + view.getUint32(section, true));
    const called = helpers[name === "xdp" ? "xdp" : "tc"];
    const begin = Number(view.getBigUint64(section + 0x18, true));
    const end = begin + Number(view.getBigUint64(section + 0x20, true));
    for (let at = begin; at < end; at += INSTRUCTION_BYTES) {
      // Source register 0: a helper by number. Others are functions of the program or of the kernel.
      if (view.getUint8(at) === CALL && view.getUint8(at + 1) >> 4 === 0)
        called.add(view.getInt32(at + 4, true));
    }
  }
  const sorted = (ids: Set<number>) => [...ids].sort((a, b) => a - b);
  return { tc: sorted(helpers.tc), xdp: sorted(helpers.xdp) };
}

/** A string with its closing zero byte. */
function textOf(bytes: Uint8Array, at: number): string {
  return new TextDecoder().decode(bytes.subarray(at, bytes.indexOf(0, at)));
}

/** What the kernel calls its helper functions, by number. */
export function helperNames(): Map<number, string> {
  const names = new Map<number, string>();
  for (const [name, id] of Btf.ofKernel().enumeratorsWithPrefix("BPF_FUNC_"))
    names.set(id, name.replace("BPF_FUNC_", "bpf_"));
  return names;
}
