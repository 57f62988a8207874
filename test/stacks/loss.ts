/** Loss on chosen links: loss.bpf.c, compiled here, its numbers mapped. There is no netem in every kernel. */
import { join } from "node:path";
import { BpfObject } from "../../src/ffi/bpf_object.ts";
import { attachFilter, TC_INGRESS } from "../../src/ffi/filters.ts";
import { Mapping, PAGE_BYTES } from "../../src/ffi/libc.ts";
import { run } from "../bpf/network.ts";

/** In the order of enum place. */
const PLACES = ["to_guest", "to_client", "tunnel_a", "tunnel_b"] as const;
export type Place = (typeof PLACES)[number];

/** struct link. */
const LINK_BYTES = 32;
const RANDOM = 0;
const DROP_CHANCE = 4;
const DROP_AGAIN_CHANCE = 8;
const DROPPED_LAST = 12;
const DROPPED = 24;

export interface LossRate {
  /** Probability that a frame is lost, and that the next one after it is lost as well. */
  loss: number;
  again: number;
}

const NO_LOSS: LossRate = { loss: 0, again: 0 };
export const ALL_LOST: LossRate = { loss: 1, again: 1 };

/** Compiles loss.bpf.c to `object`. */
export function compileLoss(object: string): void {
  const source = join(import.meta.dir, "loss.bpf.c");
  const headers = `/usr/include/${run("uname", "-m").trim()}-linux-gnu`;
  const flags = [
    "-g",
    "-O2",
    "-Wall",

    "-Werror",
    "-target",
    "bpf",
    "-mcpu=v3",
    "-isystem",
    headers,
  ];
  run("clang", ...flags, "-c", source, "-o", object);
}

/** One set of programs. */
export class Loss {
  readonly #object: BpfObject;
  readonly #links: Mapping;
  readonly #view: DataView;

  constructor(objectPath: string) {
    this.#object = BpfObject.open(objectPath);
    this.#object.load(PLACES);
    this.#links = new Mapping(PAGE_BYTES, this.#object.mapFd("links"));
    this.#view = new DataView(this.#links.buffer);
    for (const place of PLACES) this.set(place, NO_LOSS, 1);
  }

  /** What arrives at an interface of this thread's namespace. */
  attach(place: Place, ifindex: number): void {
    attachFilter(ifindex, TC_INGRESS, this.#object.programFd(place));
  }

  set(place: Place, rate: LossRate, seed: number): void {
    const at = PLACES.indexOf(place) * LINK_BYTES;
    this.#view.setUint32(at + RANDOM, seed || 1, true);
    this.#view.setUint32(at + DROPPED_LAST, 0, true);
    this.#view.setUint32(at + DROP_CHANCE, Math.round(rate.loss * 65536), true);
    this.#view.setUint32(at + DROP_AGAIN_CHANCE, Math.round(rate.again * 65536), true);
  }

  dropped(place: Place): number {
    return Number(this.#view.getBigUint64(PLACES.indexOf(place) * LINK_BYTES + DROPPED, true));
  }

  close(): void {
    this.#links.close();
    this.#object.close();
  }
}
