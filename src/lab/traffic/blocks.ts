/**
 * Kind "blocks": reads blocks past the guest's cache and compares them with what "disk" writes; ends by
 * itself.
 */
import { createHash } from "node:crypto";
import { GUEST_BLOCK_BYTES, GUEST_PORTS } from "../guest_ports.ts";
import { patternBytes } from "../pattern.ts";
import { FINISH_MS, mustStayOpen, onLines, open } from "./connection.ts";
import type { Recorder } from "./recorder.ts";

export async function blocks(recorder: Recorder): Promise<void> {
  const wanted = recorder.options.blocks ?? [];
  if (wanted.length === 0) return;
  const socket = await open(recorder, GUEST_PORTS.disk);
  const { promise, resolve } = Promise.withResolvers<void>();
  mustStayOpen(recorder, socket, () => recorder.answers === wanted.length);
  onLines(recorder, socket, (line) => {
    const block = wanted[recorder.answers];
    if (block === undefined) recorder.fail("more blocks came than were asked for");
    const content = patternBytes(block * GUEST_BLOCK_BYTES, GUEST_BLOCK_BYTES);
    const right = `BLOCK ${block} ${createHash("md5").update(content).digest("hex")}`;
    if (line !== right)
      recorder.fail(`block ${block} on the disk differs from the acknowledged one: ${line}`);
    recorder.answers++;
    if (recorder.answers === wanted.length) resolve();
  });
  const deadline = setTimeout(() => recorder.fail("the guest does not read its disk"), FINISH_MS);
  socket.write(wanted.map((block) => `READ ${block}\n`).join(""));
  await promise;
  clearTimeout(deadline);
  socket.end();
}
