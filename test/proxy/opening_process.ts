/**
 * Opens the data plane of one interface as often as it is told, and says what this process has in use; see
 * child.ts.
 *
 *   open {"limits": …}   tries it with these limits of the comparer; answers "open" or the error
 *   usage                file descriptors, mappings of BPF maps, threads
 */
import { EbpfNic, type EbpfNicOptions } from "../../src/proxy/ebpf_nic.ts";
import { resourcesInUse } from "../resources.ts";

const [objectPath, pinDirectory, peerAddress, tap] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
];

async function open(limits: Partial<EbpfNicOptions["comparing"]["limits"]>): Promise<string> {
  const nic = await EbpfNic.open(
    {
      tap,
      tunnelId: 203,
      tunnelPort: 4903,
      peerAddress,
      objectPath,
      pinDirectory,
      ringBytes: 1 << 20,
      connectionsMax: 1024,
      workers: 2,
      keep: undefined,
      comparing: {
        maxWaitMs: 60_000,
        rules: { passthrough: [], ignore: [] },
        limits: { heldFramesMax: 1024, heldFramesPerFlowMax: 1024, flowsMax: 1024, ...limits },
      },
    },
    { diverged: () => undefined, failed: () => undefined },
  );
  await nic.close();
  return "open";
}

process.stdout.write("started\n");
for await (const line of console) {
  const [, command, argument] = /^(\w+) ?(.*)$/.exec(line)!;
  try {
    const answer = command === "usage" ? resourcesInUse() : await open(JSON.parse(argument!));
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  } catch (error) {
    process.stdout.write(`${JSON.stringify((error as Error).message)}\n`);
  }
}
