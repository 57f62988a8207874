/** The clock. Leases do not need the time of day, only its rate; certificates and logs of two hosts do. */
import { clockState } from "../ffi/clock_state.ts";
import { type Check, type DoctorContext, type Finding, type Group, ok, warn } from "./check.ts";

const DRIFT_DEFAULT_PPM = 500;
const ERROR_LIMIT_US = 1_000_000;
const FIX = "Run chrony or systemd-timesyncd on both hosts.";

function synchronised(): Finding {
  const state = clockState();
  const error = `maximum error ${(state.maximumErrorUs / 1000).toFixed(0)} ms`;
  if (!state.synchronised) return warn("nothing synchronises this clock", FIX);
  if (state.maximumErrorUs > ERROR_LIMIT_US) return warn(`synchronised, but with a ${error}`, FIX);
  return ok(`synchronised, ${error}`);
}

function rate({ config }: DoctorContext): Finding {
  const { frequencyPpm } = clockState();
  const limitPpm = config?.heartbeat.clock_drift_ppm ?? DRIFT_DEFAULT_PPM;
  const words =
    `its rate is corrected by ${frequencyPpm.toFixed(1)} ppm; heartbeat.clock_drift_ppm allows ` +
    `${limitPpm}`;
  if (Math.abs(frequencyPpm) < limitPpm) return ok(words);
  return warn(words, "Raise heartbeat.clock_drift_ppm, or replace this clock.");
}

const checks: Check[] = [
  { id: "synchronised", title: "Clock", run: synchronised },
  { id: "rate", title: "Clock's rate", run: rate },
];

export const clockGroup: Group = { name: "clock", title: "Clock", checks };
