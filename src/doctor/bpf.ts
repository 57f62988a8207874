/**
 * What the data plane needs of BPF, probed by loading it: each feature by itself, then the programs as they
 * are.
 */
import { readFileSync } from "node:fs";
import {
  helperNames,
  helpersOf,
  helperWorks,
  KERNEL_FUNCTION_NAMES,
  kernelFunctionRefused,
  ringBufferWorks,
} from "../ffi/bpf_probe.ts";
import { DataPlane } from "../ffi/data_plane.ts";
import { VNET_BYTES } from "../ffi/layout.ts";
import { Arena, ifindex, PAGE_BYTES } from "../ffi/libc.ts";
import { LiveFrames } from "../ffi/live_frames.ts";
import { marksOf } from "../ffi/marks.ts";
import { type Check, type DoctorContext, type Finding, fail, type Group, ok } from "./check.ts";
import { INJECT, makeDevices, TAP, TUNNEL } from "./devices.ts";

const KERNEL_FIX =
  "Use Linux 6.2 or later, built with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS.";
/** The programs have another way to copy a frame for kernels without them. */
const OPTIONAL = new Set(["bpf_dynptr_from_skb", "bpf_dynptr_copy"]);
const RING_BYTES = 65_536;
const TC_ACT_SHOT = 2;

function ringBuffer(): Finding {
  return ringBufferWorks() ? ok("works") : fail("the kernel cannot make a BPF ring buffer", KERNEL_FIX);
}

function helpers(context: DoctorContext): Finding {
  const needed = helpersOf(readFileSync(context.objectPath()));
  const names = helperNames();
  const name = (id: number) => names.get(id) ?? `number ${id}`;
  const refusals = (["tc", "xdp"] as const).flatMap((type) => {
    const refused = needed[type].filter((id) => !helperWorks(id, type));
    return refused.length === 0 ? [] : [`${refused.map(name).join(", ")} to ${type} programs`];
  });
  if (refusals.length > 0) return fail(`the kernel refuses ${refusals.join(" and ")}`, KERNEL_FIX);
  return ok(`all ${new Set([...needed.tc, ...needed.xdp]).size} helpers of the programs`);
}

function kernelFunctions(): Finding {
  const refused = KERNEL_FUNCTION_NAMES.map((name) => ({ name, why: kernelFunctionRefused(name) })).filter(
    ({ why }) => why !== undefined,
  );
  const needed = refused.filter(({ name }) => !OPTIONAL.has(name));
  if (needed.length > 0) return fail(needed.map(({ name, why }) => `${name}: ${why}`).join("; "), KERNEL_FIX);
  if (refused.length > 0)
    return ok(
      `${refused.map(({ name }) => name).join(", ")} missing: the programs copy frames with a slower method`,
    );
  return ok(KERNEL_FUNCTION_NAMES.join(", "));
}

/** Loads all programs, attaches them to devices of a namespace of its own, and shows one a frame. */
async function dataPlane(context: DoctorContext): Promise<Finding> {
  const namespace = await context.namespace();
  await makeDevices(context);
  const pinDirectory = `/sys/fs/bpf/${namespace.name}`;
  const indexes = namespace.enter(() => ({
    tapIfindex: ifindex(TAP),
    tunnelIfindex: ifindex(TUNNEL),
    injectIfindex: ifindex(INJECT),
  }));
  try {
    const plane = DataPlane.load({
      objectPath: context.objectPath(),
      pinDirectory,
      settings: {
        ...indexes,
        peerIpv4: 0xc6120001,
        tunnelId: 1,
        ...marksOf(1),
      },
      ringBytes: RING_BYTES,
      inputRingBytes: RING_BYTES,
      connectionsMax: 64,
    });
    try {
      namespace.enter(() => plane.attach(indexes));
      // Without a lease nothing leaves: the rule that everything rests on.
      const { verdict } = plane.testRun("from_vm", new Uint8Array(64));
      if (verdict !== TC_ACT_SHOT)
        return fail(
          `a frame without a lease was not dropped (verdict ${verdict})`,
          "Report this as a defect.",
        );
      const works = "all programs load, attach, and drop a frame without a lease";
      return namespace.enter(() => runsLiveFrames(plane))
        ? ok(works)
        : ok(
            `${works}; the kernel cannot run them on live frames: many small frames are released a little ` +
              "slower",
          );
    } finally {
      plane.close();
    }
  } finally {
    DataPlane.remove(pinDirectory, []);
  }
}

function runsLiveFrames(plane: DataPlane): boolean {
  const live = new LiveFrames(plane.liveFrames);
  const arena = new Arena(PAGE_BYTES);
  try {
    const byteLength = VNET_BYTES + 64;
    live.queue(arena.address + arena.allocate(byteLength), byteLength);
    return live.send() === 1;
  } finally {
    live.close();
    arena.close();
  }
}

const checks: Check[] = [
  { id: "ring_buffer", title: "BPF ring buffer", run: ringBuffer },
  { id: "helpers", title: "BPF helper functions", run: helpers },
  { id: "kernel_functions", title: "Kernel functions in BPF", run: kernelFunctions },
  { id: "data_plane", title: "The agent's BPF programs", run: dataPlane },
];

export const bpfGroup: Group = { name: "bpf", title: "BPF", checks };
