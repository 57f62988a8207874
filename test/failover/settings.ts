/** The settings of host a, for tests of the decisions and of their driver. */
import type { Settings } from "../../src/failover/state.ts";

export const SETTINGS: Settings = {
  self: "a",
  peer: "b",
  configuredRole: "primary",
  arbiter: true,
  timeoutMs: 500,
  leaseMs: 1_000,
  marginMs: 200,
  arbiterRetryMs: 300,
  protectRetryMs: 1_000,
  restartMs: 5_000,
  takeoverPatienceMs: 10_000,
  adoptable: true,
  fence: "none",
};
