import { MUTATIONS } from "./test/simulation/mutations.ts";
import { heartbeatGeneration } from "./src/failover/decide.ts";
import { Coverage } from "./test/simulation/coverage.ts";
import { World } from "./test/simulation/world.ts";
const only = process.argv[3];
for (const [name, decide] of Object.entries(MUTATIONS)) {
  if (only && !name.includes(only)) continue;
  const rules = { decide, heartbeatOf: (s: any) => ({ generation: heartbeatGeneration(s), ready: s.phase === "waiting" }) };
  const t = performance.now(); const by = new Map<number, number[]>();
  const n = Number(process.argv[2] ?? 500);
  for (let seed = 1; seed <= n; seed++) {
    try { new World(seed, new Coverage(), rules).run(); } catch (e: any) { if (e.name !== "Violation") { console.log(seed, e.stack); break; } (by.get(e.invariant) ?? by.set(e.invariant, []).get(e.invariant)!).push(seed); }
  }
  console.log(name.padEnd(70), [...by].map(([k, v]) => `(${k}): ${v.length} [${v[0]}]`).join(" ") || "NOT CAUGHT", Math.round(performance.now() - t));
}
