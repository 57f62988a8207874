/** What one end of a connection sends: the same on both VMs, different at every place. */
import { Random } from "../random.ts";

export function streamBytes(seed: number, byteLength: number): Buffer {
  const random = new Random(seed);
  const words = new Uint32Array(Math.ceil(byteLength / 4));
  for (let i = 0; i < words.length; i++) words[i] = random.uint32();
  return Buffer.from(words.buffer, 0, byteLength);
}
