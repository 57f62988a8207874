import { MUTATIONS } from "./test/simulation/mutations.ts";
import { heartbeatGeneration } from "./src/failover/decide.ts";
import { Coverage } from "./test/simulation/coverage.ts";
import { World } from "./test/simulation/world.ts";
const decide = MUTATIONS["an answer of the arbiter to an older question counts"]!;
const rules = { decide, heartbeatOf: (s: any) => ({ generation: heartbeatGeneration(s), ready: s.phase === "waiting" }) };
let n = 0;
for (let seed = 1; seed <= 500 && n < 3; seed++) {
  const w = new World(seed, new Coverage(), rules, true);
  try { w.run(); } catch {}
  const i = w.lines.findIndex((l, k) => l.text.includes("unprotect wanted at a (protecting)"));
  if (i < 0) continue; n++;
  console.log("seed", seed);
  for (const l of w.lines.slice(Math.max(0, i - 6), i + 22)) console.log(l.atMs.toFixed(1).padStart(9), l.who.padEnd(10), l.text.slice(0, 170));
}
