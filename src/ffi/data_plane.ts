/**
 * Loads bpf/colo.bpf.c, pins it and attaches it to a VM's interfaces.
 *
 * Everything is made to outlive the agent: maps and programs are pinned, filters stay attached. A new agent
 * loads the programs again, adopts the pinned maps with their content (the role, held frames, connections)
 * and replaces the filters one by one. There is no moment at which a frame meets no filter.
 */

import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Problem } from "../errors/problem.ts";
import { mapInfo } from "./bpf_map.ts";
import { BpfObject } from "./bpf_object.ts";
import { programInfo } from "./bpf_program.ts";
import { Connections } from "./connections.ts";
import { Counters } from "./counters.ts";
import { checkSettings, type DataPlaneSettings, settingsBytes } from "./data_plane_settings.ts";
import { attachedProgram, attachFilter, attachXdp, detachFilter, TC_EGRESS, TC_INGRESS } from "./filters.ts";
import { kernelFeatures } from "./kernel_features.ts";
import type { CounterName } from "./layout.ts";
import { isRoot } from "./libc.ts";
import type { LiveFramesSetup } from "./live_frames.ts";
import { adoptOrPin, pinnedWorkers, preparePinDirectory } from "./pinned_maps.ts";
import type { RingSetup } from "./ring.ts";
import { StateView } from "./state_view.ts";
import { runFilter, type TestRun } from "./test_run.ts";
import { closeWorkerRings, openWorkerRings, type WorkerRings } from "./worker_rings.ts";

export interface DataPlaneOptions {
  /** The compiled bpf/colo.bpf.c. */
  objectPath: string;
  /** On a BPF file system; one for each VM. /sys/fs/bpf is mounted if it is not. */
  pinDirectory: string;
  settings: DataPlaneSettings;
  /**
   * Among how many workers the VM's output is shared, 1 to WORKERS_MAX; 1. A pinned data plane keeps its
   * number.
   */
  workers?: number;
  /**
   * Bytes of each worker's rings for primary and secondary output, a power of two; 64 MiB. Pinned rings keep
   * theirs.
   */
  ringBytes?: number;
  /** Bytes of the ring for diverted input, a power of two; 8 MiB. A pinned ring keeps its size. */
  inputRingBytes?: number;
  /** TCP connections that are remembered at a time; 65536. A pinned map keeps its size. */
  connectionsMax?: number;
  /** Copies frames as kernels before 6.15 need it, even if this one has a better way. For tests. */
  copyInChunks?: boolean;
}

export const PROGRAMS = ["from_vm", "inject", "release_frames", "to_vm", "from_tunnel"] as const;
export type ProgramName = (typeof PROGRAMS)[number];

const DEFAULT_RING_BYTES = 64 * 1024 * 1024;
const DEFAULT_INPUT_RING_BYTES = 8 * 1024 * 1024;
const DEFAULT_CONNECTIONS_MAX = 65536;

/** The map of runs of live frames: a list for each worker. */
const LIVE_LISTS = "live_lists";

/** What an open data plane consists of. */
interface Parts {
  object: BpfObject;
  state: StateView;
  counters: Counters;
  connections: Connections;
  workers: readonly WorkerRings[];
  tapIfindex: number;
}

export class DataPlane {
  /** For StateView in another thread. */
  readonly stateFd: number;
  /** Of each worker. */
  readonly workers: readonly WorkerRings[];
  /** Diverted input. */
  readonly input: RingSetup;
  readonly liveFrames: LiveFramesSetup;
  /** Connections whose numbers are rewritten. */
  readonly connections: Connections;

  readonly #object: BpfObject;
  readonly #counters: Counters;
  readonly #state: StateView;
  readonly #opened: DisposableStack;

  private constructor(parts: Parts, opened: DisposableStack) {
    const { object, workers, tapIfindex } = parts;
    this.#object = object;
    this.#state = parts.state;
    this.#counters = parts.counters;
    this.connections = parts.connections;
    this.workers = workers;
    this.stateFd = object.mapFd("state_map");
    const inputFd = object.mapFd("input_ring");
    this.input = { fd: inputFd, bytes: mapInfo(inputFd).maxEntries };
    this.liveFrames = {
      programFd: object.programFd("release_frames"),
      listsFd: object.mapFd(LIVE_LISTS),
      workers: workers.length,
      tapIfindex,
    };
    this.#opened = opened.move();
  }

  /**
   * Loads the programs and creates the maps, or adopts those pinned in `pinDirectory`. A fresh state is
   * BLOCKED with no lease.
   *
   * @throws Error with what the kernel lacks, or the verifier's last lines; nothing stays open then
   */
  static load(options: DataPlaneOptions): DataPlane {
    const { objectPath, pinDirectory, settings } = options;
    checkSettings(settings, options.workers ?? 1);
    if (!isRoot()) throw new Error("Loading BPF programs needs root.");
    if (!existsSync(objectPath)) {
      throw new Problem(`there is no BPF object at ${objectPath}`, "run scripts/build-bpf");
    }
    const kernel = kernelFeatures();
    preparePinDirectory(pinDirectory);

    using opened = new DisposableStack();
    const object = opened.adopt(BpfObject.open(objectPath), (each) => each.close());
    const workers = pinnedWorkers(pinDirectory) ?? options.workers ?? 1;
    const copyInChunks = options.copyInChunks || kernel.copyInChunks;
    object.setConstants(settingsBytes(settings, workers, { ...kernel, copyInChunks }));
    object.setMapSize(LIVE_LISTS, workers);
    adoptOrPin(object, pinDirectory, {
      connections: options.connectionsMax ?? DEFAULT_CONNECTIONS_MAX,
      primary_rings: workers,
      secondary_rings: workers,
      doorbell_rings: workers,
      input_ring: options.inputRingBytes ?? DEFAULT_INPUT_RING_BYTES,
    });
    object.load(PROGRAMS);
    for (const name of PROGRAMS) {
      const path = join(pinDirectory, name);
      rmSync(path, { force: true });
      object.pinProgram(name, path);
    }
    const rings = openWorkerRings(
      (name) => object.mapFd(name),
      workers,
      options.ringBytes ?? DEFAULT_RING_BYTES,
    );
    opened.defer(() => closeWorkerRings(rings));
    const state = opened.adopt(new StateView(object.mapFd("state_map")), (each) => each.close());
    const parts = {
      object,
      state,
      counters: opened.adopt(new Counters(object.mapFd("counters")), (each) => each.close()),
      connections: opened.adopt(new Connections(object.mapFd("connections"), state), (each) => each.close()),
      workers: rings,
      tapIfindex: settings.tapIfindex,
    };
    return new DataPlane(parts, opened);
  }

  /** @throws Error after close(): its memory is gone then, and a late access must not crash the process */
  get state(): StateView {
    this.#checkOpen();
    return this.#state;
  }

  /**
   * Attaches the programs to the tap (both ways), the tunnel and the interface that released frames are sent
   * on: they never get to its peer. Replaces what an earlier agent attached. Call it in the interfaces'
   * network namespace.
   *
   * @throws SystemError; Error if the tap has a qdisc that lacks one of the hooks
   */
  attach(at: { tapIfindex: number; tunnelIfindex: number; injectIfindex: number }): void {
    attachFilter(at.tapIfindex, TC_EGRESS, this.#programFd("to_vm"));
    attachFilter(at.tapIfindex, TC_INGRESS, this.#programFd("from_vm"));
    // On an ingress qdisc both would end up at the one hook that it has, the second in place of the first.
    if (attachedProgram(at.tapIfindex, TC_EGRESS) !== programInfo(this.#programFd("to_vm")).id) {
      throw new Error(
        `Interface ${at.tapIfindex} has an ingress qdisc, which has no hook for frames to the VM: ` +
          "remove it (tc qdisc del dev NAME ingress); the agent adds clsact, which has both hooks.",
      );
    }
    attachFilter(at.tunnelIfindex, TC_INGRESS, this.#programFd("from_tunnel"));
    attachFilter(at.injectIfindex, TC_EGRESS, this.#programFd("inject"));
    // No frame ever arrives there. But for a program that is attached nowhere the kernel updates its XDP
    // dispatcher before and after every run, and waits for all CPUs (kernel/bpf/dispatcher.c).
    attachXdp(at.injectIfindex, this.#programFd("release_frames"));
  }

  /** Frames counted since the maps were created, over all CPUs. */
  counters(): Record<CounterName, number> {
    this.#checkOpen();
    return this.#counters.all();
  }

  /** One of {@link counters}, without allocating. */
  counter(name: CounterName): number {
    this.#checkOpen();
    return this.#counters.of(name);
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

  /** Closes all of it here; filters, programs and maps stay in the kernel. Close Rings and Waiters first. */
  close(): void {
    this.#opened.dispose();
  }

  /** Takes our filters from the interfaces and unpins everything. Then the VM's frames pass unprotected. */
  static remove(pinDirectory: string, ifindexes: readonly number[]): void {
    for (const ifindex of ifindexes) {
      detachFilter(ifindex, TC_INGRESS);
      detachFilter(ifindex, TC_EGRESS);
    }
    rmSync(pinDirectory, { recursive: true, force: true });
  }

  #checkOpen(): void {
    if (this.#opened.disposed) throw new Error("The data plane of this VM has been closed.");
  }

  #programFd(name: ProgramName): number {
    this.#checkOpen();
    return this.#object.programFd(name);
  }
}
