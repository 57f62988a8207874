/** Reads a database of divergences again and again while a test writes to it; says what it has seen. */
import { DivergenceReader } from "../../src/divergence/reader.ts";
import { noise } from "./records.ts";

const READS = 200;
const reader = DivergenceReader.open(process.argv[2]!);
const frame = Buffer.from(noise(1500, 5));
const seen = new Set<number>();
const wrong: string[] = [];
for (let i = 0; i < READS; i++) {
  const records = reader.list({ limit: 1000 });
  const newest = records[0]?.id ?? 0;
  seen.add(newest);
  if (records.length > 200) wrong.push(`${records.length} records`);
  for (const [at, record] of records.entries()) {
    if (record.id !== newest - at) wrong.push(`record ${record.id} follows ${newest - at + 1}`);
    if (!frame.equals(record.primaryFrame!)) wrong.push(`record ${record.id} has another frame`);
  }
  await Bun.sleep(2);
}
reader.close();
console.log(JSON.stringify({ reads: READS, distinct: seen.size, wrong: wrong.slice(0, 5) }));
