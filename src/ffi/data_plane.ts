/**
 * Loads bpf/colo.bpf.c, pins it and attaches it to a VM's interfaces.
 *
 * Everything is made to outlive the agent: maps and programs are pinned, filters stay attached. A new agent loads the
 * programs again, adopts the pinned maps with what is in them (the role, held frames, connections) and replaces the
 * filters one by one, with no moment in between at which a frame meets none.
 */

import type { Pointer } from "bun:ffi";
import { existsSync, mkdirSync, readdirSync, rmSync, statfsSync, unlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { Btf } from "./btf.ts";
import {
  CONNECTION,
  CONNECTION_BYTES,
  CONNECTION_FLAG,
  CONNECTION_KEY_BYTES,
  COUNTER_NAMES,
  type CounterName,
  SETTINGS,
  SETTINGS_BYTES,
  WORKERS_MAX,
} from "./layout.ts";
import {
  attachFilter,
  attachXdp,
  checkBpf,
  checkPointer,
  detachFilter,
  lastVerifierLines,
  libbpf,
  mapInfo,
  openPinned,
  runFilter,
  TC_EGRESS,
  TC_INGRESS,
  type TestRun,
} from "./libbpf.ts";
import {
  Arena,
  bootTimeNs,
  bootTimeNsNumber,
  check,
  closeFd,
  ENOENT,
  errorText,
  isRoot,
  libc,
  PAGE_BYTES,
  temporaryString,
  textAt,
} from "./libc.ts";
import { DOORBELL_BYTES } from "./poll.ts";
import { StateView } from "./state_view.ts";

export interface DataPlaneSettings {
  /** The VM's tap. */
  tapIfindex: number;
  /** VXLAN device in external mode. */
  tunnelIfindex: number;
  /** The other agent's replication address, most significant byte first: 198.18.0.1 is 0xc6120001. */
  peerIpv4: number;
  /** 0 to 255, the same on both hosts, unique among the VMs of a tunnel device. */
  tunnelId: number;
  /** On frames that the agent releases, on mirrored frames, and on diverted input put back. Different, not 0. */
  injectMark: number;
  deliverMark: number;
  replayMark: number;
}

export interface DataPlaneOptions {
  /** The compiled bpf/colo.bpf.c. */
  objectPath: string;
  /** On a BPF file system; one for each VM. /sys/fs/bpf is mounted if nobody has done so. */
  pinDirectory: string;
  settings: DataPlaneSettings;
  /** Among how many workers the VM's output is shared, 1 to WORKERS_MAX; 1. A pinned data plane keeps its number. */
  workers?: number;
  /** Size of each worker's rings for primary and secondary output, a power of two; 64 MiB. Pinned rings keep their size. */
  ringBytes?: number;
  /** Size of the ring for diverted input, a power of two; 8 MiB. Pinned rings keep their size. */
  inputRingBytes?: number;
  /** TCP connections that are remembered at a time; 65536. A pinned map keeps its size. */
  connectionsMax?: number;
  /** Uses the way to copy a frame that kernels before 6.15 need, even if this one has a better one. For tests. */
  copyInChunks?: boolean;
}

export const PROGRAMS = ["from_vm", "inject", "release_frames", "to_vm", "from_tunnel"] as const;
export type ProgramName = (typeof PROGRAMS)[number];

const MAPS = [
  "state_map",
  "counters",
  "connections",
  "primary_rings",
  "secondary_rings",
  "doorbell_rings",
  "input_ring",
] as const;
type MapName = (typeof MAPS)[number];

/** Maps with a ring for each worker. */
const WORKER_MAPS = ["primary_rings", "secondary_rings", "doorbell_rings"] as const;
type WorkerMapName = (typeof WORKER_MAPS)[number];

/** Maps whose size is a matter of the options; a pinned one keeps the size it has. */
const SIZED: ReadonlySet<string> = new Set(["connections", ...WORKER_MAPS, "input_ring"]);

/** A list for each worker. Nothing in it outlives a run, so it is not pinned. */
const LIVE_LISTS = "live_lists";

const DEFAULT_RING_BYTES = 64 * 1024 * 1024;
const DEFAULT_INPUT_RING_BYTES = 8 * 1024 * 1024;
const DEFAULT_CONNECTIONS_MAX = 65536;
const BATCH_CONNECTIONS = 1024;
const VERIFIER_LOG_BYTES = 1024 * 1024;
const BPF_NOEXIST = 1;
const BPF_MAP_TYPE_RINGBUF = 27;
const BPF_FS = "/sys/fs/bpf";
const BPF_FS_MAGIC = 0xcafe4a11;

/** What Ring is opened with, in any thread. */
export interface RingSetup {
  fd: number;
  bytes: number;
}

/** What LiveFrames is opened with, in any thread. */
export interface LiveFramesSetup {
  programFd: number;
  listsFd: number;
  workers: number;
  tapIfindex: number;
}

/** Where one worker finds what it compares, and what wakes it (Waiter). */
export interface WorkerRings {
  primary: RingSetup;
  secondary: RingSetup;
  doorbellFd: number;
}

export class DataPlane {
  readonly #state: StateView;
  #closed = false;
  /** For StateView in another thread. */
  readonly stateFd: number;
  /** Of each worker. */
  readonly workers: readonly WorkerRings[];
  /** Diverted input. */
  readonly input: RingSetup;
  readonly liveFrames: LiveFramesSetup;
  /** For Ring and Waiter, of the first worker. */
  readonly ringFds: { primary: number; secondary: number; input: number; doorbell: number };
  /** The sizes that Ring wants to know. */
  readonly ringBytes: { primary: number; secondary: number; input: number; doorbell: number };

  readonly #object: Pointer;
  readonly #arena = new Arena(256 * 1024);

  private constructor(object: Pointer, workers: readonly WorkerRings[], tapIfindex: number) {
    this.#object = object;
    this.liveFrames = {
      programFd: this.#programFd("release_frames"),
      listsFd: mapFd(object, LIVE_LISTS),
      workers: workers.length,
      tapIfindex,
    };
    this.stateFd = mapFd(object, "state_map");
    this.#state = new StateView(this.stateFd);
    this.workers = workers;
    this.input = ringSetup(mapFd(object, "input_ring"));
    const [{ primary, secondary, doorbellFd }] = workers;
    this.ringFds = {
      primary: primary.fd,
      secondary: secondary.fd,
      input: this.input.fd,
      doorbell: doorbellFd,
    };
    this.ringBytes = {
      primary: primary.bytes,
      secondary: secondary.bytes,
      input: this.input.bytes,
      doorbell: DOORBELL_BYTES,
    };
  }

  /**
   * Loads the programs and creates the maps, or adopts those pinned in `pinDirectory`. A fresh state is BLOCKED with no
   * lease.
   *
   * @throws Error with what the kernel lacks, or the verifier's last lines
   */
  static load(options: DataPlaneOptions): DataPlane {
    const { objectPath, pinDirectory, settings } = options;
    checkSettings(settings);
    if (!isRoot()) throw new Error("Loading BPF programs needs root.");
    if (!existsSync(objectPath)) {
      throw new Error(`There is no BPF object at ${objectPath}: run scripts/build-bpf.`);
    }
    const kernel = probeKernel();
    preparePinDirectory(pinDirectory);

    const opened = libbpf().bpf_object__open_file(temporaryString(objectPath), null);
    const object = checkPointer(opened, `Cannot read the BPF object ${objectPath}`);
    try {
      const workers = workerCount(pinDirectory, options.workers ?? 1);
      writeSettings(object, settings, workers, {
        ...kernel,
        copyInChunks: options.copyInChunks || kernel.copyInChunks,
      });
      sizeMaps(object, pinDirectory, workers, options);
      loadPrograms(object);
      pinPrograms(object, pinDirectory);
      const rings = openWorkerRings(object, workers, options.ringBytes ?? DEFAULT_RING_BYTES);
      return new DataPlane(object, rings, settings.tapIfindex);
    } catch (error) {
      libbpf().bpf_object__close(object);
      throw error;
    }
  }

  get state(): StateView {
    if (this.#closed) throw new Error("The data plane of this VM has been closed.");
    return this.#state;
  }

  /**
   * Attaches the programs to the tap (both ways), the tunnel and the interface that released frames are sent on: they
   * never get to its peer. Replaces what an earlier agent attached. Call it in the interfaces' network namespace.
   */
  attach(at: { tapIfindex: number; tunnelIfindex: number; injectIfindex: number }): void {
    attachFilter(at.tapIfindex, TC_EGRESS, this.#programFd("to_vm"));
    attachFilter(at.tapIfindex, TC_INGRESS, this.#programFd("from_vm"));
    attachFilter(at.tunnelIfindex, TC_INGRESS, this.#programFd("from_tunnel"));
    attachFilter(at.injectIfindex, TC_EGRESS, this.#programFd("inject"));
    // Nothing ever arrives there. But a program that is attached somewhere is known to the kernel's XDP dispatcher; for one
    // that is not, each run would change that twice and wait for all CPUs (kernel/bpf/dispatcher.c).
    attachXdp(at.injectIfindex, this.#programFd("release_frames"));
  }

  /** Frames counted since the maps were created, over all CPUs. */
  counters(): Record<CounterName, number> {
    const cpus = checkBpf(libbpf().libbpf_num_possible_cpus(), "Cannot count the machine's CPUs");
    const fd = mapFd(this.#open, "counters");
    const arena = new Arena(4096 + cpus * 8);
    try {
      const key = arena.allocate(4);
      const values = arena.allocate(cpus * 8);
      const result = {} as Record<CounterName, number>;
      COUNTER_NAMES.forEach((name, index) => {
        arena.view.setUint32(key, index, true);
        const read = libbpf().bpf_map_lookup_elem(
          fd,
          (arena.address + key) as Pointer,
          (arena.address + values) as Pointer,
        );
        checkBpf(read, "Cannot read the counters");
        let sum = 0;
        for (let cpu = 0; cpu < cpus; cpu++) sum += Number(arena.view.getBigUint64(values + cpu * 8, true));
        result[name] = sum;
      });
      return result;
    } finally {
      arena.close();
    }
  }

  /** Remembered TCP connections, those of past epochs included. */
  connectionCount(): number {
    let count = 0;
    this.#forEachConnection(() => count++);
    return count;
  }

  /**
   * Forgets connections.
   *
   * @param olderThanEpoch only those learned in another epoch than this, and none that were inherited; without it, all
   * @returns how many were forgotten
   */
  clearConnections(olderThanEpoch?: number): number {
    const { view } = this.#arena;
    return this.#removeConnections((value) => {
      if (olderThanEpoch === undefined) return true;
      const inherited = (view.getUint32(value + CONNECTION.flags, true) & CONNECTION_FLAG.INHERITED) !== 0;
      return !inherited && view.getUint32(value + CONNECTION.epoch, true) !== olderThanEpoch;
    });
  }

  /**
   * Forgets connections that have ended: both sides have sent FIN, or one RST, or the handshake was never completed, and
   * nothing of it has been seen since. Call it now and then, or the map fills up (counter connection_full).
   *
   * @param ended.closedForMs how long ago the last segment of an ended connection was; at least as long as the last
   *   segments may be sent again (twice the maximum segment lifetime of RFC 9293, 3.4.2)
   * @param ended.idleForMs the same for any other connection, whose ends may both have vanished without a word
   * @returns how many were forgotten
   */
  collectConnections(ended: { closedForMs: number; idleForMs: number }): number {
    if (!this.state.connectionsKept) return 0;
    const { view } = this.#arena;
    const { KNOWN, RESET, GUEST_FIN, CLIENT_FIN } = CONNECTION_FLAG;
    const now = bootTimeNsNumber();
    return this.#removeConnections((value) => {
      const flags = view.getUint32(value + CONNECTION.flags, true);
      const isClosed =
        (flags & KNOWN) === 0 ||
        (flags & RESET) !== 0 ||
        (flags & (GUEST_FIN | CLIENT_FIN)) === (GUEST_FIN | CLIENT_FIN);
      const silentNs = now - Number(view.getBigUint64(value + CONNECTION.last_seen_ns, true));
      return silentNs > (isClosed ? ended.closedForMs : ended.idleForMs) * 1e6;
    });
  }

  /**
   * The connections whose numbers this host has to put right because its VM once took over, in a form for
   * {@link importConnections} on a new secondary. To be called while the VM is stopped, for a connection that the VM
   * opens afterwards may have the same addresses and ports.
   */
  exportConnections(): Uint8Array {
    const { view, bytes } = this.#arena;
    const epoch = this.state.rewriteEpoch;
    const entries: Uint8Array[] = [];
    this.#forEachConnection((key, value) => {
      const flags = view.getUint32(value + CONNECTION.flags, true);
      const valid =
        (flags & CONNECTION_FLAG.INHERITED) !== 0 || view.getUint32(value + CONNECTION.epoch, true) === epoch;
      if (!valid || (flags & CONNECTION_FLAG.KNOWN) === 0) return;
      view.setUint32(value + CONNECTION.flags, flags | CONNECTION_FLAG.INHERITED, true);
      entries.push(
        bytes.slice(key, key + CONNECTION_KEY_BYTES),
        bytes.slice(value, value + CONNECTION_BYTES),
      );
    });
    return new Uint8Array(Buffer.concat(entries));
  }

  /**
   * Replaces all connections by those that the primary's host exported. They are applied once this VM runs alone or is
   * a primary itself.
   *
   * @returns how many there are
   * @throws Error if `exported` is not from exportConnections(), or is more than the map holds
   */
  importConnections(exported: Uint8Array): number {
    const entryBytes = CONNECTION_KEY_BYTES + CONNECTION_BYTES;
    if (exported.length % entryBytes !== 0) {
      throw new Error(
        `Exported connections come in entries of ${entryBytes} bytes; these are ${exported.length} bytes.`,
      );
    }
    this.clearConnections();
    const fd = mapFd(this.#open, "connections");
    const arena = this.#arena;
    arena.reset();
    const entry = arena.allocate(entryBytes);
    const [key, value] = [arena.address + entry, arena.address + entry + CONNECTION_KEY_BYTES] as Pointer[];
    const now = bootTimeNs();
    for (let at = 0; at < exported.length; at += entryBytes) {
      arena.bytes.set(exported.subarray(at, at + entryBytes), entry);
      // The other host's clock is another one.
      arena.view.setBigUint64(entry + CONNECTION_KEY_BYTES + CONNECTION.last_seen_ns, now, true);
      checkBpf(libbpf().bpf_map_update_elem(fd, key, value, 0), "Cannot take over a connection");
    }
    if (exported.length > 0) this.state.connectionsKept = true;
    return exported.length / entryBytes;
  }

  /**
   * Runs a program on a frame, as the kernel would (BPF_PROG_TEST_RUN).
   *
   * @param options.mark skb->mark before
   * @param options.ifindex the device that the frame belongs to; the loopback device
   * @param options.repeat runs the program this often on the same frame
   * @returns verdict: TC_ACT_OK 0, TC_ACT_SHOT 2, TC_ACT_REDIRECT 7; the frame and its mark afterwards
   */
  testRun(
    program: ProgramName,
    frame: Uint8Array,
    options: { mark?: number; ifindex?: number; repeat?: number } = {},
  ): TestRun {
    return runFilter(this.#programFd(program), frame, options);
  }

  /** Lets go of everything here; filters, programs and maps stay in the kernel. Close Rings and Waiters first. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#state.close();
    this.#arena.close();
    for (const { primary, secondary, doorbellFd } of this.workers) {
      for (const fd of [primary.fd, secondary.fd, doorbellFd]) closeFd(fd);
    }
    libbpf().bpf_object__close(this.#object);
  }

  /** What is mapped and what libbpf holds is gone after close(): a step that comes too late must get an error, not crash. */
  get #open(): Pointer {
    if (this.#closed) throw new Error("The data plane of this VM has been closed.");
    return this.#object;
  }

  /** Takes our filters from the interfaces and unpins everything. Then the VM's frames pass unprotected. */
  static remove(pinDirectory: string, ifindexes: readonly number[]): void {
    for (const ifindex of ifindexes) {
      detachFilter(ifindex, TC_INGRESS);
      detachFilter(ifindex, TC_EGRESS);
    }
    rmSync(pinDirectory, { recursive: true, force: true });
  }

  /** Removes connections; `isOver` gets the offset of one in the arena. Returns how many were removed. */
  #removeConnections(isOver: (value: number) => boolean): number {
    const fd = mapFd(this.#open, "connections");
    const arena = this.#arena;
    let removed = 0;
    let kept = false;
    let last = -1;
    this.#forEachConnection((key, value) => {
      if (!isOver(value)) {
        kept = true;
        return;
      }
      if (last < 0) last = arena.allocate(CONNECTION_BYTES);
      const [keyAt, lastAt] = [(arena.address + key) as Pointer, (arena.address + last) as Pointer];
      if (libbpf().bpf_map_lookup_and_delete_elem(fd, keyAt, lastAt) !== 0) return;
      if (isOver(last)) {
        removed++;
        return;
      }
      // A new one on the same ports was learned since: it goes back, unless another has taken its place already.
      libbpf().bpf_map_update_elem(fd, keyAt, lastAt, BPF_NOEXIST);
      kept = true;
    });
    if (!kept) this.#forgetThatAnyAreKept();
    return removed;
  }

  /** A connection may be learned at the same time: it is either seen here, or the program that learns it sets the flag. */
  #forgetThatAnyAreKept(): void {
    this.state.connectionsKept = false;
    if (this.connectionCount() > 0) this.state.connectionsKept = true;
  }

  #programFd(name: ProgramName): number {
    return libbpf().bpf_program__fd(
      libbpf().bpf_object__find_program_by_name(this.#open, temporaryString(name)),
    );
  }

  /**
   * `visit` gets offsets in the arena, of copies; it may delete the connection. One that is learned or deleted
   * meanwhile may be missed.
   */
  #forEachConnection(visit: (key: number, value: number) => void): void {
    const fd = mapFd(this.#open, "connections");
    const arena = this.#arena;
    arena.reset();
    const keys = arena.allocate(CONNECTION_KEY_BYTES * BATCH_CONNECTIONS);
    const values = arena.allocate(CONNECTION_BYTES * BATCH_CONNECTIONS);
    const place = arena.allocate(8);
    const count = arena.allocate(4);
    const at = (offset: number) => (arena.address + offset) as Pointer;
    for (let isFirst = true, more = true; more; isFirst = false) {
      arena.view.setUint32(count, BATCH_CONNECTIONS, true);
      const from = isFirst ? null : at(place);
      const result = libbpf().bpf_map_lookup_batch(
        fd,
        from,
        at(place),
        at(keys),
        at(values),
        at(count),
        null,
      );
      // The last batch comes with this error (kernel/bpf/hashtab.c, __htab_map_lookup_and_delete_batch).
      more = result !== -ENOENT;
      if (more) checkBpf(result, "Cannot read the connections");
      const found = arena.view.getUint32(count, true);
      for (let i = 0; i < found; i++) visit(keys + i * CONNECTION_KEY_BYTES, values + i * CONNECTION_BYTES);
    }
  }
}

function checkSettings(settings: DataPlaneSettings): void {
  const marks = [settings.injectMark, settings.deliverMark, settings.replayMark];
  if (marks.includes(0) || new Set(marks).size !== marks.length) {
    throw new Error("The marks for injected, delivered and replayed frames have to be different and not 0.");
  }
  if (!Number.isInteger(settings.tunnelId) || settings.tunnelId < 0 || settings.tunnelId > 255) {
    throw new Error(`The tunnel id is a number from 0 to 255, not ${settings.tunnelId}.`);
  }
}

/** What the programs need from the kernel (bpf/kernel.h). */
interface KernelFeatures {
  copyInChunks: boolean;
  gso: Map<string, number>;
}

const NEEDED_FUNCTIONS = ["bpf_cast_to_kern_ctx", "bpf_rdonly_cast"];
const COPY_FUNCTIONS = ["bpf_dynptr_from_skb", "bpf_dynptr_copy"];
const GSO_BITS = ["SKB_GSO_TCPV4", "SKB_GSO_TCPV6", "SKB_GSO_TCP_ECN", "SKB_GSO_UDP", "SKB_GSO_UDP_L4"];

let probed: KernelFeatures | undefined;

function probeKernel(): KernelFeatures {
  if (probed !== undefined) return probed;
  const btf = Btf.ofKernel();
  const functions = btf.functions([...NEEDED_FUNCTIONS, ...COPY_FUNCTIONS]);
  const missing = NEEDED_FUNCTIONS.filter((name) => !functions.has(name));
  if (missing.length > 0) {
    throw new Error(
      `Linux 6.2 or later is needed: this kernel does not offer ${missing.join(" and ")} to BPF programs.`,
    );
  }
  const gso = btf.enumerators(GSO_BITS);
  const unknown = GSO_BITS.filter((name) => !gso.has(name));
  if (unknown.length > 0) {
    throw new Error(
      `The kernel's type information does not name ${unknown.join(", ")}: Linux 6.2 or later is needed.`,
    );
  }
  probed = { gso, copyInChunks: COPY_FUNCTIONS.some((name) => !functions.has(name)) };
  return probed;
}

function isBpfFs(path: string): boolean {
  return existsSync(path) && statfsSync(path).type === BPF_FS_MAGIC;
}

function preparePinDirectory(path: string): void {
  let existing = path;
  while (!existsSync(existing)) existing = dirname(existing);
  if (!isBpfFs(existing)) {
    if (path !== BPF_FS && !path.startsWith(`${BPF_FS}/`)) {
      throw new Error(`${path} is not on a BPF file system: use a directory under ${BPF_FS}.`);
    }
    const arena = new Arena(4096);
    try {
      const [type, target] = [arena.string("bpf") as Pointer, arena.string(BPF_FS) as Pointer];
      check(libc.mount(type, target, type, 0, null), `Cannot mount a BPF file system at ${BPF_FS}`);
    } finally {
      arena.close();
    }
  }
  mkdirSync(path, { recursive: true, mode: 0o700 });
}

function findMap(object: Pointer, name: string): Pointer {
  const map = libbpf().bpf_object__find_map_by_name(object, temporaryString(name));
  return checkPointer(map, `The BPF object has no map ${name}; build it again with scripts/build-bpf`);
}

function findProgram(object: Pointer, name: ProgramName): Pointer {
  const program = libbpf().bpf_object__find_program_by_name(object, temporaryString(name));
  return checkPointer(
    program,
    `The BPF object has no program ${name}; build it again with scripts/build-bpf`,
  );
}

function mapFd(object: Pointer, name: MapName | typeof LIVE_LISTS): number {
  return libbpf().bpf_map__fd(findMap(object, name));
}

function ringSetup(fd: number): RingSetup {
  return { fd, bytes: mapInfo(fd).maxEntries };
}

/** How many workers there are: as many as in a data plane that is pinned already, whatever is `wanted`. */
function workerCount(pinDirectory: string, wanted: number): number {
  if (!Number.isInteger(wanted) || wanted < 1 || wanted > WORKERS_MAX) {
    throw new Error(`The number of workers is one from 1 to ${WORKERS_MAX}, not ${wanted}.`);
  }
  for (const name of WORKER_MAPS) {
    const fd = openPinned(join(pinDirectory, name));
    if (fd < 0) continue;
    const { maxEntries } = mapInfo(fd);
    closeFd(fd);
    return maxEntries;
  }
  return wanted;
}

/** Each worker's rings: those that are there already, and new ones where there are none. */
function openWorkerRings(object: Pointer, workers: number, ringBytes: number): WorkerRings[] {
  const sizes: Record<WorkerMapName, number> = {
    primary_rings: ringBytes,
    secondary_rings: ringBytes,
    doorbell_rings: DOORBELL_BYTES,
  };
  const open = (name: WorkerMapName, worker: number) =>
    openWorkerRing(mapFd(object, name), worker, name.slice(0, -1), sizes[name]);
  return Array.from({ length: workers }, (_, worker) => ({
    primary: ringSetup(open("primary_rings", worker)),
    secondary: ringSetup(open("secondary_rings", worker)),
    doorbellFd: open("doorbell_rings", worker),
  }));
}

/** The ring of `worker` in a map of rings. */
function openWorkerRing(ringsFd: number, worker: number, name: string, bytes: number): number {
  const arena = new Arena(PAGE_BYTES);
  try {
    const [key, value] = [arena.allocate(4), arena.allocate(4)];
    arena.view.setUint32(key, worker, true);
    const [keyAt, valueAt] = [arena.address + key, arena.address + value] as Pointer[];
    // What is read is an id, what is written a descriptor (kernel/bpf/map_in_map.c).
    if (libbpf().bpf_map_lookup_elem(ringsFd, keyAt, valueAt) === 0) {
      const fd = libbpf().bpf_map_get_fd_by_id(arena.view.getUint32(value, true));
      return checkBpf(fd, `Cannot open the ${name} of worker ${worker}`);
    }
    const fd = libbpf().bpf_map_create(BPF_MAP_TYPE_RINGBUF, temporaryString(name), 0, 0, bytes, null);
    checkBpf(fd, `Cannot make a ring of ${bytes} bytes`);
    arena.view.setUint32(value, fd, true);
    const put = libbpf().bpf_map_update_elem(ringsFd, keyAt, valueAt, 0);
    if (put < 0) closeFd(fd);
    checkBpf(put, `Cannot put the ${name} of worker ${worker} in its place`);
    return fd;
  } finally {
    arena.close();
  }
}

function writeSettings(
  object: Pointer,
  settings: DataPlaneSettings,
  workers: number,
  kernel: KernelFeatures,
): void {
  const map = findMap(object, ".rodata");
  const bytes = libbpf().bpf_map__value_size(map);
  if (bytes !== SETTINGS_BYTES) {
    throw new Error(
      `The BPF object's settings have ${bytes} bytes instead of ${SETTINGS_BYTES}: build it again with scripts/build-bpf.`,
    );
  }
  const values: Record<keyof typeof SETTINGS, number> = {
    tap_ifindex: settings.tapIfindex,
    tunnel_ifindex: settings.tunnelIfindex,
    peer_ipv4: settings.peerIpv4,
    tunnel_id: settings.tunnelId,
    inject_mark: settings.injectMark,
    deliver_mark: settings.deliverMark,
    replay_mark: settings.replayMark,
    copy_in_chunks: kernel.copyInChunks ? 1 : 0,
    gso_tcpv4: kernel.gso.get("SKB_GSO_TCPV4")!,
    gso_tcpv6: kernel.gso.get("SKB_GSO_TCPV6")!,
    gso_tcp_ecn: kernel.gso.get("SKB_GSO_TCP_ECN")!,
    gso_udp: kernel.gso.get("SKB_GSO_UDP")!,
    gso_udp_l4: kernel.gso.get("SKB_GSO_UDP_L4")!,
    workers,
  };
  const arena = new Arena(PAGE_BYTES);
  try {
    const at = arena.allocate(SETTINGS_BYTES);
    for (const [field, offset] of Object.entries(SETTINGS)) {
      arena.view.setUint32(at + offset, values[field as keyof typeof SETTINGS], true);
    }
    const set = libbpf().bpf_map__set_initial_value(map, (arena.address + at) as Pointer, SETTINGS_BYTES);
    checkBpf(set, "Cannot write the settings into the BPF object");
  } finally {
    arena.close();
  }
}

/** Gives each map its size and the path at which libbpf adopts or pins it. */
function sizeMaps(object: Pointer, pinDirectory: string, workers: number, options: DataPlaneOptions): void {
  const sizes: Partial<Record<MapName, number>> = {
    connections: options.connectionsMax ?? DEFAULT_CONNECTIONS_MAX,
    primary_rings: workers,
    secondary_rings: workers,
    doorbell_rings: workers,
    input_ring: options.inputRingBytes ?? DEFAULT_INPUT_RING_BYTES,
  };
  const lists = libbpf().bpf_map__set_max_entries(findMap(object, LIVE_LISTS), workers);
  checkBpf(lists, `Cannot size the map ${LIVE_LISTS}`);
  for (const name of MAPS) {
    const map = findMap(object, name);
    const path = join(pinDirectory, name);
    const size = pinnedSize(map, name, path) ?? sizes[name];
    if (size !== undefined)
      checkBpf(libbpf().bpf_map__set_max_entries(map, size), `Cannot size the map ${name}`);
    checkBpf(libbpf().bpf_map__set_pin_path(map, temporaryString(path)), `Cannot pin the map ${name}`);
  }
}

/** Size of the map pinned at `path`, undefined if there is none. */
function pinnedSize(map: Pointer, name: MapName, path: string): number | undefined {
  const fd = openPinned(path);
  if (fd < 0) return undefined;
  try {
    const pinned = mapInfo(fd);
    const same =
      pinned.keyBytes === libbpf().bpf_map__key_size(map) &&
      pinned.valueBytes === libbpf().bpf_map__value_size(map) &&
      (SIZED.has(name) || pinned.maxEntries === libbpf().bpf_map__max_entries(map));
    if (!same) {
      throw new Error(
        `The map pinned at ${path} was made by another version of the agent: stop the VM's protection with that version first.`,
      );
    }
    return pinned.maxEntries;
  } finally {
    closeFd(fd);
  }
}

function loadPrograms(object: Pointer): void {
  const log = new Arena(PROGRAMS.length * VERIFIER_LOG_BYTES);
  try {
    const buffers = PROGRAMS.map((name) => {
      const program = findProgram(object, name);
      const buffer = log.address + log.allocate(VERIFIER_LOG_BYTES);
      libbpf().bpf_program__set_log_buf(program, buffer as Pointer, VERIFIER_LOG_BYTES);
      return { name, buffer };
    });
    const result = libbpf().bpf_object__load(object);
    if (result >= 0) return;
    const refused = buffers.findLast(({ buffer }) => log.view.getUint8(buffer - log.address) !== 0);
    if (refused === undefined) {
      throw new Error(`The kernel does not take the BPF object: ${errorText(-result)}.`);
    }
    throw new Error(
      `The kernel's verifier refuses the program ${refused.name}:\n${lastVerifierLines(textAt(refused.buffer))}`,
    );
  } finally {
    log.close();
  }
}

function pinPrograms(object: Pointer, pinDirectory: string): void {
  for (const name of PROGRAMS) {
    const path = join(pinDirectory, name);
    if (readdirSync(pinDirectory).includes(name)) unlinkSync(path);
    const program = findProgram(object, name);
    checkBpf(libbpf().bpf_program__pin(program, temporaryString(path)), `Cannot pin the program ${name}`);
  }
}
