/** Has a tap open until it is killed, as a VM's QEMU; see child.ts. */
import { Tap } from "../../src/ffi/tap.ts";

const tap = new Tap(process.argv[2]!);
process.stdout.write("open\n");
for await (const _ of console);
tap.close();
