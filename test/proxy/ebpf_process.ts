/** Runs the data plane of a VM with two interfaces as an agent does; see child.ts. */

import { ROLE } from "../../src/ffi/layout.ts";
import { bootMs } from "../../src/host/clock.ts";
import { EbpfProxy } from "../../src/proxy/ebpf.ts";

const [objectPath, pinDirectory, peerAddress, how, ...taps] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
];
const keep = how === "primary" ? ROLE.PRIMARY : how === "secondary" ? ROLE.SECONDARY : undefined;
const proxy = await EbpfProxy.open(
  (taps as string[]).map((tap, index) => ({
    tap,
    tunnelId: 201 + index,
    tunnelPort: 4901 + index,
    peerAddress,
    objectPath,
    pinDirectory,
    ringBytes: 1 << 20,
    connectionsMax: 1024,
    workers: 1,
    keep,
    comparing: {
      maxWaitMs: 60_000,
      rules: { passthrough: [], ignore: [] },
      limits: { heldFramesMax: 1024, heldFramesPerFlowMax: 1024, flowsMax: 1024 },
    },
  })),
  {
    diverged: () => undefined,
    differed: () => undefined,
    broken: () => undefined,
    failed: (message) => {
      throw new Error(message);
    },
  },
);

const commands: Record<string, (argument: string) => unknown> = {
  lease: (ms) => proxy.extendLease(bootMs() + Number(ms)),
  drop: () => proxy.dropLease(),
  alone: () => proxy.passAlone(),
  hold: (epoch) => proxy.hold(Number(epoch)),
  replay: () => proxy.replayInput(),
  follow: (entry) => proxy.follow(JSON.parse(entry)),
  epoch: () => proxy.epoch,
  kept: () => proxy.kept,
  resume: (epoch) => proxy.resume(Number(epoch)),
  release: (epoch) => proxy.releaseCheckpoint(BigInt(Date.now()) * 1_000_000n, Number(epoch)),
  held: () =>
    proxy.readings().map(({ tap, shared, counters }) => [tap, counters.held, shared.stat("held_frames")]),
};

process.stdout.write("open\n");
for await (const line of console) {
  const blank = line.indexOf(" ");
  const [command, argument] = blank < 0 ? [line, ""] : [line.slice(0, blank), line.slice(blank + 1)];
  try {
    const result = (await commands[command]!(argument)) ?? "done";
    process.stdout.write(`${JSON.stringify(result)}\n`);
  } catch (error) {
    process.stdout.write(`${JSON.stringify((error as Error).message)}\n`);
  }
}
