/**
 * Keeps the gate of taps as an agent does, in a process that a test can kill: one command a line, one answer
 * a line.
 */
import { bootMs } from "../../src/host/clock.ts";
import { TapGate } from "../../src/proxy/tap_gate.ts";

const [table, ...taps] = process.argv.slice(2);
const gate = await TapGate.open(table!, taps);

const commands: Record<string, (argument: string | undefined) => void | Promise<void>> = {
  lease: (ms) => gate.extendLease(bootMs() + Number(ms)),
  drop: () => gate.dropLease(),
  input: () => gate.letInput(),
  "no-input": () => gate.keepInputOut(),
  check: () => gate.check(),
};

process.stdout.write("open\n");
for await (const line of console) {
  const [command, argument] = line.split(" ");
  try {
    await commands[command!]!(argument);
    process.stdout.write("done\n");
  } catch (error) {
    process.stdout.write(`${(error as Error).message}\n`);
  }
}
