/**
 * Reads the kernel's type information (BTF, Documentation/bpf/btf.rst), as far as is needed to know what the
 * running kernel offers: which functions BPF programs may call, and the values of constants.
 */
import { readFileSync } from "node:fs";

const KERNEL_BTF = "/sys/kernel/btf/vmlinux";
const MAGIC = 0xeb9f;
const TYPE_BYTES = 12;

const KIND = {
  INT: 1,
  ARRAY: 3,
  STRUCT: 4,
  UNION: 5,
  ENUM: 6,
  FUNC: 12,
  FUNC_PROTO: 13,
  VAR: 14,
  DATASEC: 15,
  DECL_TAG: 17,
  ENUM64: 19,
} as const;

/** Bytes that follow a type of this kind with `vlen` members. */
function trailingBytes(kind: number, vlen: number): number {
  switch (kind) {
    case KIND.INT:
    case KIND.VAR:
    case KIND.DECL_TAG:
      return 4;
    case KIND.ARRAY:
      return 12;
    case KIND.STRUCT:
    case KIND.UNION:
    case KIND.DATASEC:
    case KIND.ENUM64:
      return 12 * vlen;
    case KIND.ENUM:
    case KIND.FUNC_PROTO:
      return 8 * vlen;
    default:
      return 0;
  }
}

export class Btf {
  readonly #buffer: Buffer;
  readonly #view: DataView;
  readonly #types: number;
  readonly #typesEnd: number;
  readonly #strings: number;

  constructor(bytes: Uint8Array) {
    this.#buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    if (this.#view.getUint16(0, true) !== MAGIC)
      throw new Error("This is no BTF in the machine's byte order.");
    const header = this.#view.getUint32(4, true);
    this.#types = header + this.#view.getUint32(8, true);
    this.#typesEnd = this.#types + this.#view.getUint32(12, true);
    this.#strings = header + this.#view.getUint32(16, true);
  }

  /** The running kernel's. @throws Error if it was built without CONFIG_DEBUG_INFO_BTF */
  static ofKernel(): Btf {
    try {
      return new Btf(readFileSync(KERNEL_BTF));
    } catch (cause) {
      throw new Error(
        `The kernel's type information cannot be read from ${KERNEL_BTF}: a kernel with ` +
          "CONFIG_DEBUG_INFO_BTF is needed.",
        { cause },
      );
    }
  }

  /** Those of `names` that are functions. */
  functions(names: readonly string[]): Set<string> {
    const wanted = this.#nameOffsets(names);
    const found = new Set<string>();
    this.#forEachType((kind, nameOffset) => {
      const name = kind === KIND.FUNC ? wanted.get(nameOffset) : undefined;
      if (name !== undefined) found.add(name);
    });
    return found;
  }

  /** Values of enumerators (of 32-bit enums, named or not) called `names`. */
  enumerators(names: readonly string[]): Map<string, number> {
    const wanted = this.#nameOffsets(names);
    const found = new Map<string, number>();
    this.#forEachType((kind, _nameOffset, vlen, at) => {
      if (kind !== KIND.ENUM) return;
      for (let i = 0; i < vlen; i++) {
        const name = wanted.get(this.#view.getUint32(at + 8 * i, true));
        if (name !== undefined) found.set(name, this.#view.getInt32(at + 8 * i + 4, true));
      }
    });
    return found;
  }

  /** Numbers of the functions and structures among `names`, as programs refer to them. */
  ids(names: readonly string[]): Map<string, number> {
    const wanted = this.#nameOffsets(names);
    const found = new Map<string, number>();
    let id = 0;
    this.#forEachType((kind, nameOffset) => {
      id++; // the types are numbered from 1
      if (kind !== KIND.FUNC && kind !== KIND.STRUCT) return;
      const name = wanted.get(nameOffset);
      if (name !== undefined) found.set(name, id);
    });
    return found;
  }

  /** Values of all enumerators (of 32-bit enums) whose names begin so. */
  enumeratorsWithPrefix(prefix: string): Map<string, number> {
    const wanted = Buffer.from(prefix, "latin1");
    const found = new Map<string, number>();
    this.#forEachType((kind, _nameOffset, vlen, at) => {
      if (kind !== KIND.ENUM) return;
      for (let i = 0; i < vlen; i++) {
        const name = this.#strings + this.#view.getUint32(at + 8 * i, true);
        if (this.#buffer.compare(wanted, 0, wanted.length, name, name + wanted.length) !== 0) continue;
        const end = this.#buffer.indexOf(0, name);
        found.set(this.#buffer.toString("latin1", name, end), this.#view.getInt32(at + 8 * i + 4, true));
      }
    });
    return found;
  }

  /** Offset in the string section -> name. The section holds each string once. */
  #nameOffsets(names: readonly string[]): Map<number, string> {
    const offsets = new Map<number, string>();
    for (const name of names) {
      const at = this.#buffer.indexOf(`\0${name}\0`, this.#strings, "latin1");
      if (at >= 0) offsets.set(at + 1 - this.#strings, name);
    }
    return offsets;
  }

  #forEachType(visit: (kind: number, nameOffset: number, vlen: number, trailingAt: number) => void): void {
    for (let at = this.#types; at < this.#typesEnd; ) {
      const info = this.#view.getUint32(at + 4, true);
      const kind = (info >>> 24) & 0x1f;
      const vlen = info & 0xffff;
      visit(kind, this.#view.getUint32(at, true), vlen, at + TYPE_BYTES);
      at += TYPE_BYTES + trailingBytes(kind, vlen);
    }
  }
}
