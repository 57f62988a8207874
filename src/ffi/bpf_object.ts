/** A compiled BPF object, from its file to programs and maps in the kernel (libbpf's struct bpf_object). */
import { checkBpf, checkPointer, libbpf } from "./libbpf.ts";
import { Arena, errorText, temporaryString, textAt } from "./libc.ts";
import type { Address } from "./native.ts";

const VERIFIER_LOG_BYTES = 1024 * 1024;
const VERIFIER_LINES_MAX = 6;
const INSTRUCTION = /^\d+: \(/;
const REBUILD = "build it again with scripts/build-bpf";

export class BpfObject {
  #handle: Address | undefined;

  private constructor(handle: Address) {
    this.#handle = handle;
  }

  /** @throws SystemError if the file is no BPF object */
  static open(path: string): BpfObject {
    const opened = libbpf().bpf_object__open_file(temporaryString(path), null);
    return new BpfObject(checkPointer(opened, `Cannot read the BPF object ${path}`));
  }

  /** Belongs to the object, as every descriptor of it. */
  mapFd(name: string): number {
    return libbpf().bpf_map__fd(this.#map(name));
  }

  programFd(name: string): number {
    return libbpf().bpf_program__fd(this.#program(name));
  }

  /** What the object says of a map, before load(). */
  mapShape(name: string): { keyBytes: number; valueBytes: number; maxEntries: number } {
    const map = this.#map(name);
    return {
      keyBytes: libbpf().bpf_map__key_size(map),
      valueBytes: libbpf().bpf_map__value_size(map),
      maxEntries: libbpf().bpf_map__max_entries(map),
    };
  }

  /** Before load(). */
  setMapSize(name: string, maxEntries: number): void {
    const set = libbpf().bpf_map__set_max_entries(this.#map(name), maxEntries);
    checkBpf(set, `Cannot size the map ${name}`);
  }

  /** Before load(), which adopts the map that is pinned there or pins its own. */
  setPinPath(name: string, path: string): void {
    const set = libbpf().bpf_map__set_pin_path(this.#map(name), temporaryString(path));
    checkBpf(set, `Cannot pin the map ${name}`);
  }

  /**
   * The object's constants (`const volatile`), before load(): the verifier sees them as constants.
   *
   * @throws Error if they have another size
   */
  setConstants(constants: Uint8Array): void {
    const map = this.#map(".rodata");
    const bytes = libbpf().bpf_map__value_size(map);
    if (bytes !== constants.length) {
      throw new Error(
        `The BPF object's settings have ${bytes} bytes instead of ${constants.length}: ${REBUILD}.`,
      );
    }
    const arena = new Arena(constants.length);
    try {
      const set = libbpf().bpf_map__set_initial_value(map, arena.copy(constants), constants.length);
      checkBpf(set, "Cannot write the settings into the BPF object");
    } finally {
      arena.close();
    }
  }

  /**
   * Creates the maps and loads the programs.
   *
   * @param programs all of them, to get the verifier's log of each
   * @throws Error with the last lines of the verifier's log, or what else the kernel has against it
   */
  load(programs: readonly string[]): void {
    const log = new Arena(programs.length * VERIFIER_LOG_BYTES);
    try {
      const logs = programs.map((name) => {
        const at = log.allocate(VERIFIER_LOG_BYTES);
        libbpf().bpf_program__set_log_buf(this.#program(name), log.address + at, VERIFIER_LOG_BYTES);
        return { name, at };
      });
      const result = libbpf().bpf_object__load(this.#open);
      if (result >= 0) return;
      const refused = logs.findLast(({ at }) => log.view.getUint8(at) !== 0);
      if (refused === undefined) {
        throw new Error(`The kernel does not take the BPF object: ${errorText(-result)}.`);
      }
      const lines = lastVerifierLines(textAt(log.address + refused.at));
      throw new Error(`The kernel's verifier refuses the program ${refused.name}:\n${lines}`);
    } finally {
      log.close();
    }
  }

  pinProgram(name: string, path: string): void {
    const pinned = libbpf().bpf_program__pin(this.#program(name), temporaryString(path));
    checkBpf(pinned, `Cannot pin the program ${name}`);
  }

  /** Closes all descriptors; what is pinned or attached stays in the kernel. */
  close(): void {
    if (this.#handle === undefined) return;
    libbpf().bpf_object__close(this.#handle);
    this.#handle = undefined;
  }

  get #open(): Address {
    if (this.#handle === undefined) throw new Error("The BPF object has been closed.");
    return this.#handle;
  }

  #map(name: string): Address {
    const map = libbpf().bpf_object__find_map_by_name(this.#open, temporaryString(name));
    return checkPointer(map, `The BPF object has no map ${name}; ${REBUILD}`);
  }

  #program(name: string): Address {
    const program = libbpf().bpf_object__find_program_by_name(this.#open, temporaryString(name));
    return checkPointer(program, `The BPF object has no program ${name}; ${REBUILD}`);
  }
}

/** The end of a verifier log: the source line at which it stopped, and its last lines. */
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
