/**
 * Sends many small frames at once from the memory in which they lie, by a run of the program release_frames
 * on live frames (bpf/live.h; Documentation/bpf/bpf_prog_run.rst). They arrive where the VM's own frames do.
 * A frame costs less than half of its cost in PacketSocket; a run costs as much as six or seven frames there.
 */
import {
  LIVE_FRAME,
  LIVE_FRAME_BYTES_MAX,
  LIVE_FRAME_ENTRY_BYTES,
  LIVE_LIST,
  LIVE_LIST_BYTES,
  LIVE_START_BYTES,
  VNET_BYTES,
} from "./layout.ts";
import { libbpf } from "./libbpf.ts";
import { Arena, EINTR, Mapping, PAGE_BYTES, setAddress } from "./libc.ts";
import type { Address } from "./native.ts";
import { TEST_RUN, TEST_RUN_BYTES } from "./test_run.ts";

/** include/uapi/linux/bpf.h */
const BPF_F_TEST_XDP_LIVE_FRAMES = 2;
const XDP_MD = { data: 0, data_end: 4, data_meta: 8, ingress_ifindex: 12 } as const;
const XDP_MD_BYTES = 24;
/** The run's mark lies in front of each frame. */
const MARK_BYTES = 4;

/** Of a virtio_net_hdr and the frame behind it: what LiveFrames takes. */
export const LIVE_SEND_BYTES_MAX = VNET_BYTES + LIVE_FRAME_BYTES_MAX;

/** What {@link LiveFrames} is opened with, in any thread. */
export interface LiveFramesSetup {
  programFd: number;
  listsFd: number;
  workers: number;
  tapIfindex: number;
}

export class LiveFrames {
  /** Frames that the program did not understand, and frames that it has passed. */
  failed = 0;
  sent = 0;

  readonly #programFd: number;
  readonly #lists: Mapping;
  readonly #list: Int32Array;
  readonly #entries: DataView;
  readonly #arena = new Arena(PAGE_BYTES);
  readonly #options: Address;
  readonly #repeat: number;
  #queued = 0;

  /**
   * @param worker whose list this is, from 0; frames enter in the network namespace of the thread that calls
   * send()
   */
  constructor({ programFd, listsFd, workers, tapIfindex }: LiveFramesSetup, worker = 0) {
    if (worker >= workers) throw new RangeError(`There are ${workers} workers, so none is number ${worker}.`);
    this.#programFd = programFd;
    this.#lists = new Mapping(Math.ceil((workers * LIVE_LIST_BYTES) / PAGE_BYTES) * PAGE_BYTES, listsFd);
    const { buffer } = this.#lists;
    this.#list = new Int32Array(buffer, worker * LIVE_LIST_BYTES, LIVE_LIST_BYTES / 4);
    this.#entries = new DataView(buffer, worker * LIVE_LIST_BYTES + LIVE_LIST.frames);

    const arena = this.#arena;
    const { view, address } = arena;
    const frameBytes = MARK_BYTES + LIVE_START_BYTES + worker;
    const frame = arena.allocate(frameBytes);
    const context = arena.allocate(XDP_MD_BYTES);
    view.setUint32(context + XDP_MD.data, MARK_BYTES, true);
    view.setUint32(context + XDP_MD.data_end, frameBytes, true);
    view.setUint32(context + XDP_MD.ingress_ifindex, tapIfindex, true);
    const options = arena.allocate(TEST_RUN_BYTES);
    view.setBigUint64(options + TEST_RUN.size, BigInt(TEST_RUN_BYTES), true);
    view.setBigUint64(options + TEST_RUN.data_in, BigInt(address + frame), true);
    view.setUint32(options + TEST_RUN.data_size_in, frameBytes, true);
    view.setBigUint64(options + TEST_RUN.ctx_in, BigInt(address + context), true);
    view.setUint32(options + TEST_RUN.ctx_size_in, XDP_MD_BYTES, true);
    view.setUint32(options + TEST_RUN.flags, BPF_F_TEST_XDP_LIVE_FRAMES, true);
    this.#options = address + options;
    this.#repeat = options + TEST_RUN.repeat;
  }

  /** Frames that wait for send(); there may be LIVE_LIST_MAX. */
  get queued(): number {
    return this.#queued;
  }

  /**
   * Adds a frame to the next send().
   *
   * @param address of a virtio_net_hdr without segmentation and the frame behind it; has to stay as it is
   *   until send()
   * @param byteLength of both together, LIVE_SEND_BYTES_MAX at most
   */
  queue(address: Address, byteLength: number): void {
    const at = this.#queued++ * LIVE_FRAME_ENTRY_BYTES;
    const entries = this.#entries;
    setAddress(entries, at + LIVE_FRAME.address, address);
    entries.setUint32(at + LIVE_FRAME.bytes, byteLength, true);
  }

  /**
   * Sends what is queued.
   *
   * @returns the number of frames; if it is less than {@link queued} was, the kernel has stopped, and the
   *   others are still to be sent
   */
  send(): number {
    const queued = this.#queued;
    this.#queued = 0;
    const list = this.#list;
    list[LIVE_LIST.next / 4] = 0;
    list[LIVE_LIST.failed / 4] = 0;
    let done = 0;
    while (done < queued) {
      this.#arena.view.setInt32(this.#repeat, queued - done, true);
      const result = libbpf().bpf_prog_test_run_opts(this.#programFd, this.#options);
      const before = done;
      done = Atomics.load(list, LIVE_LIST.next / 4);
      // A signal ends a run early (kernel: bpf_test_timer_continue).
      if (result < 0 ? result !== -EINTR : done === before) break;
    }
    const failed = Atomics.load(list, LIVE_LIST.failed / 4);
    this.failed += failed;
    this.sent += done - failed;
    return done;
  }

  close(): void {
    this.#lists.close();
    this.#arena.close();
  }
}
