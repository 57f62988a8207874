import { decide, heartbeatGeneration } from "./src/failover/decide.ts";
import { Coverage } from "./test/simulation/coverage.ts";
import { World } from "./test/simulation/world.ts";
const rules = { decide, heartbeatOf: (s: any) => ({ generation: heartbeatGeneration(s), ready: s.phase === "waiting" }) };
const [from, to] = (process.argv[2] ?? "1-100").split("-").map(Number) as [number, number];
const one = to === undefined;
const coverage = new Coverage();
let bad = 0; const t0 = performance.now(); let steps = 0;
const kinds = new Map<string, number[]>();
for (let seed = from; seed <= (to ?? from); seed++) {
  const w = new World(seed, coverage, rules, one);
  try { coverage.count("outcome " + w.run()); } catch (e: any) {
    const k = e.name === "Violation" ? e.message.replace(/[a-b]'?(\.\d+)?/g, x=>x).replace(/\d+(\.\d+)?/g, "N") : e.stack.split("\n").slice(0,3).join("|");
    (kinds.get(k) ?? kinds.set(k, []).get(k)!).push(seed);
    if (one) { for (const l of w.lines.slice(-(Number(process.argv[3] ?? 60)))) console.log(l.atMs.toFixed(1).padStart(9), l.who.padEnd(10), l.text); console.log(e.message); }
    bad++;
  }
  steps += w.steps;
  if (one && !bad) for (const l of w.lines.slice(-(Number(process.argv[3] ?? 60)))) console.log(l.atMs.toFixed(1).padStart(9), l.who.padEnd(10), l.text);
}
if (!one) { for (const [k, v] of [...kinds].sort((a, b) => b[1].length - a[1].length).slice(0, 15)) console.log(v.length, k, v.slice(0, 5).join(" "));
console.log("bad", bad, "steps", steps, "ms", Math.round(performance.now() - t0));
if (process.argv[3]) console.log([...coverage.counts].sort().map(([k, v]) => `${k}: ${v}`).join("\n")); }
else console.log([...coverage.counts].filter(([k])=>k.startsWith("outcome")).join());
