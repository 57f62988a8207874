import { afterAll, beforeAll, expect, test } from "bun:test";
import { Generator } from "./generator.ts";
import { QemuCompare } from "./qemu_compare.ts";
import { runSideBySide, Unexplained } from "./side_by_side.ts";

/** COLO_DIFF_SEED=n runs that one sequence only; COLO_DIFF_SEQUENCES=n runs more of them. */
const only = process.env.COLO_DIFF_SEED;
const count = Number(process.env.COLO_DIFF_SEQUENCES ?? 2000);
const seeds = only === undefined ? Array.from({ length: count }, (_, i) => 1 + i) : [Number(only)];
const keepGoing = process.env.COLO_DIFF_ALL !== undefined;

let qemu: QemuCompare;
beforeAll(async () => { qemu = await QemuCompare.start(); });
afterAll(async () => { await qemu?.stop(); });

test("x", async () => {
  const sum = new Map<string, number>();
  let steps = 0, agree = 0, together = 0, asked = 0, unp = 0, bad = 0;
  const kinds = new Map<string, string>();
  const kindCount = new Map<string, number>();
  for (const seed of seeds) {
    const generator = new Generator(seed, seed);
    const s = generator.run();
    try {
      const r = await runSideBySide(s, qemu);
      steps += r.steps; together += r.releasedTogether; asked += r.askedTogether;
      if (r.differences.size === 0) agree++;
      if (r.unpredictable) unp++;
      for (const [n] of r.differences) sum.set(n, (sum.get(n) ?? 0) + 1);
    } catch (error) {
      if (!(error instanceof Unexplained)) throw error;
      bad++;
      const m = error.message.split("\n")[0].replace(/\d+/g, "N").slice(0, 90);
      kindCount.set(m, (kindCount.get(m) ?? 0) + 1);
      if (!kinds.has(m)) kinds.set(m, `seed ${seed} features ${generator.features}\n${error.message}`);
      if (!keepGoing) throw new Error(`Run it again with COLO_DIFF_SEED=${seed} (${generator.features}): ${error.message}`);
    }
  }
  console.log({ steps, agree, together, asked, unp, bad }, sum);
  for (const [m, t] of kinds) console.log("=====", kindCount.get(m), m, "\n", t.split("\n").slice(0, Number(process.env.LINES ?? 14)).join("\n"));
  expect(bad).toBe(0);
}, 600_000);
