/** The arbiter, by reading from it as the agent does. */

import { openArbiter } from "../arbiter/index.ts";
import { agentPair } from "../config/config.ts";
import { createLogger } from "../host/log.ts";
import {
  type Check,
  configOf,
  type DoctorContext,
  type Finding,
  failed,
  type Group,
  ok,
  warn,
} from "./check.ts";

/** A read slower than this part of arbiter.timeout_ms leaves no room for bad days. */
const SLOW_PART = 0.5;

async function records(context: DoctorContext): Promise<Finding[]> {
  const config = configOf(context);
  const settings = config.arbiter;
  if (settings.type === "none") {
    return [
      warn(
        "there is none: a lost primary is not taken over automatically",
        "Run a witness on a third host, or name an etcd (docs/arbiters.md).",
      ),
    ];
  }
  const timeoutMs = settings.timeout_ms;
  const arbiter = await openArbiter(config.arbiter, agentPair(config), createLogger("error"));
  const findings: Finding[] = [];
  for (const { name } of config.vm) {
    findings.push({ subject: name, ...(await readRecord(name)) });
  }
  return findings;

  async function readRecord(vm: string): Promise<Finding> {
    const begun = performance.now();
    try {
      const record = await arbiter.read(vm);
      const tookMs = performance.now() - begun;
      const what = record === undefined ? "no record yet" : `held by ${record.holder}, term ${record.term}`;
      const words = `${arbiter.description} answered in ${tookMs.toFixed(0)} ms: ${what}`;
      if (tookMs < timeoutMs * SLOW_PART) return ok(words);
      return warn(words, "Move the arbiter nearer, or raise arbiter.timeout_ms and heartbeat.lease_ms.");
    } catch (error) {
      return failed(error, "Start the arbiter, and check its address and the certificates.");
    }
  }
}

const checks: Check[] = [{ id: "records", title: "Arbiter", needsConfig: true, run: records }];

export const arbiterGroup: Group = { name: "arbiter", title: "Arbiter", checks };
