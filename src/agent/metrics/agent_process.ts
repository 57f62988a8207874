/** Metrics of the agent's process. */
import { Gauge, type Registry } from "prom-client";

export function addProcessMetrics(registry: Registry, version: string): void {
  const build = new Gauge({
    name: "colo_agent_build_info",
    help: "Version of the agent; always 1",
    labelNames: ["version"],
    registers: [registry],
  });
  build.set({ version }, 1);
  new Gauge({
    name: "colo_agent_resident_memory_bytes",
    help: "Resident memory of the agent's process",
    registers: [registry],
    collect() {
      this.set(process.memoryUsage.rss());
    },
  });
}
