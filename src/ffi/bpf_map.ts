/**
 * A BPF map by its descriptor (bpf(2), Documentation/bpf/maps.rst).
 *
 * Keys and values travel through memory that is allocated once, with the map: write the key at {@link
 * BpfMap.key}, call, read the value at {@link BpfMap.value}. No call maps or allocates anything.
 */
import { checkBpf, libbpf } from "./libbpf.ts";
import { Arena, closeFd, ENOENT, temporaryString } from "./libc.ts";

/** enum bpf_map_type of include/uapi/linux/bpf.h. */
const MAP_TYPE = { PERCPU_ARRAY: 6, RINGBUF: 27 } as const;
/** bpf_map_update_elem: only if the map has no such key. */
const BPF_NOEXIST = 1;
/**
 * The start of struct bpf_map_info: type, id, key_size, value_size, max_entries; longer for the kernel's
 * sake.
 */
const MAP_INFO = { type: 0, id: 4, keyBytes: 8, valueBytes: 12, maxEntries: 16 } as const;
const MAP_INFO_BYTES = 80;
/** Space for the position between two batches: a key of an array, a bucket of a hash table. */
const BATCH_POSITION_BYTES = 8;

interface BpfMapInfo {
  /** enum bpf_map_type. */
  type: number;
  /** Its number in the kernel. */
  id: number;
  keyBytes: number;
  /** Of one CPU, in a map with a value for each. */
  valueBytes: number;
  /** Of a ring: its bytes. */
  maxEntries: number;
}

const scratch = new Arena(4096);
const infoAt = scratch.allocate(MAP_INFO_BYTES);
const infoLengthAt = scratch.allocate(4);

/** The kind and size of a map. */
export function mapInfo(fd: number): BpfMapInfo {
  const { view, address } = scratch;
  view.setUint32(infoLengthAt, MAP_INFO_BYTES, true);
  const result = libbpf().bpf_obj_get_info_by_fd(fd, address + infoAt, address + infoLengthAt);
  checkBpf(result, "Cannot ask the kernel about a map");
  return {
    type: view.getUint32(infoAt + MAP_INFO.type, true),
    id: view.getUint32(infoAt + MAP_INFO.id, true),
    keyBytes: view.getUint32(infoAt + MAP_INFO.keyBytes, true),
    valueBytes: view.getUint32(infoAt + MAP_INFO.valueBytes, true),
    maxEntries: view.getUint32(infoAt + MAP_INFO.maxEntries, true),
  };
}

/** The kind and size of the map that is pinned at `path`, undefined if there is none. */
export function pinnedMapInfo(path: string): BpfMapInfo | undefined {
  const fd = libbpf().bpf_obj_get(temporaryString(path));
  if (fd < 0) return undefined;
  try {
    return mapInfo(fd);
  } finally {
    closeFd(fd);
  }
}

/** Makes a ring of `bytes` bytes, a power of two. Returns its descriptor. */
export function createRing(name: string, bytes: number): number {
  const fd = libbpf().bpf_map_create(MAP_TYPE.RINGBUF, temporaryString(name), 0, 0, bytes, null);
  return checkBpf(fd, `Cannot make a ring of ${bytes} bytes`);
}

export class BpfMap {
  /** Offsets in {@link view} of the key and the value that calls take and leave. */
  readonly key: number;
  readonly value: number;
  /** Bytes of a value, all CPUs' together. */
  readonly valueBytes: number;

  readonly #arena: Arena;
  readonly #keyBytes: number;
  readonly #batch: number;
  readonly #keys: number;
  readonly #values: number;
  readonly #position: number;
  readonly #count: number;
  #closed = false;

  /**
   * @param fd stays the caller's
   * @param what names the map in errors: "the connections"
   * @param batch entries that {@link forEach} reads at a time
   */
  constructor(
    readonly fd: number,
    private readonly what: string,
    { batch = 1 }: { batch?: number } = {},
  ) {
    const { type, keyBytes, valueBytes } = mapInfo(fd);
    this.#keyBytes = keyBytes;
    this.valueBytes = type === MAP_TYPE.PERCPU_ARRAY ? possibleCpus() * valueBytes : valueBytes;
    this.#batch = batch;
    const entryBytes = keyBytes + this.valueBytes;
    this.#arena = new Arena((batch + 1) * entryBytes + 4096);
    this.key = this.#arena.allocate(keyBytes);
    this.value = this.#arena.allocate(this.valueBytes);
    this.#keys = this.#arena.allocate(batch * keyBytes);
    this.#values = this.#arena.allocate(batch * this.valueBytes);
    this.#position = this.#arena.allocate(BATCH_POSITION_BYTES);
    this.#count = this.#arena.allocate(4);
  }

  /** The memory of keys and values. Throws after {@link close}: it is gone then. */
  get view(): DataView {
    return this.#open.view;
  }

  /** As {@link view}. */
  get bytes(): Uint8Array {
    return this.#open.bytes;
  }

  /** Reads the entry of the key at `key` to {@link value}; false if there is none. */
  lookup(key = this.key): boolean {
    const { address } = this.#open;
    return this.#found(libbpf().bpf_map_lookup_elem(this.fd, address + key, address + this.value));
  }

  /** As lookup(), and deletes the entry. */
  take(key = this.key): boolean {
    const { address } = this.#open;
    return this.#found(libbpf().bpf_map_lookup_and_delete_elem(this.fd, address + key, address + this.value));
  }

  /** Writes the value at {@link value} to the entry of the key at {@link key}. Throws a SystemError. */
  update(what: string): void {
    const { address } = this.#open;
    checkBpf(libbpf().bpf_map_update_elem(this.fd, address + this.key, address + this.value, 0), what);
  }

  /**
   * Puts the value at {@link value} back, unless the key at `key` has one again or the map has become full.
   */
  restore(key: number): void {
    const { address } = this.#open;
    libbpf().bpf_map_update_elem(this.fd, address + key, address + this.value, BPF_NOEXIST);
  }

  /**
   * Visits all entries; gets the offsets of key and value in {@link view}. It may take the entry out. An
   * entry that is added or deleted meanwhile may be missed.
   */
  forEach(visit: (key: number, value: number) => void): void {
    const { view, address } = this.#open;
    const position = address + this.#position;
    for (let isFirst = true, more = true; more; isFirst = false) {
      view.setUint32(this.#count, this.#batch, true);
      const result = libbpf().bpf_map_lookup_batch(
        this.fd,
        isFirst ? null : position,
        position,
        address + this.#keys,
        address + this.#values,
        address + this.#count,
        null,
      );
      // The last batch comes with this error (kernel/bpf/hashtab.c, __htab_map_lookup_and_delete_batch;
      // kernel/bpf/syscall.c, generic_map_lookup_batch).
      more = this.#found(result);
      const found = view.getUint32(this.#count, true);
      for (let i = 0; i < found; i++) {
        visit(this.#keys + i * this.#keyBytes, this.#values + i * this.valueBytes);
      }
    }
  }

  /** Frees the memory. The descriptor stays open. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#arena.close();
  }

  get #open(): Arena {
    if (this.#closed) throw new Error(`The map of ${this.what} has been closed.`);
    return this.#arena;
  }

  #found(result: number): boolean {
    if (result === -ENOENT) return false;
    checkBpf(result, `Cannot read ${this.what}`);
    return true;
  }
}

let cpus: number | undefined;

/** CPUs that the machine may have: a per-CPU map has a value for each. */
function possibleCpus(): number {
  cpus ??= checkBpf(libbpf().libbpf_num_possible_cpus(), "Cannot count the machine's CPUs");
  return cpus;
}
