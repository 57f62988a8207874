/**
 * The tables of the agent's configuration file: which keys there are, of what kind, and their defaults. Each
 * table is strict, so that a misspelt key is an error.
 *
 * Each key has a description. scripts/configuration-docs makes docs/configuration.md from it: `kind` and
 * `otherwise` there are the kind of value and the default, for keys whose schema does not hold them.
 */
import { z } from "zod";
import { identifier } from "../failover/vm_record.ts";
import { arbiterConfig } from "./arbiter.ts";
import { fenceConfig, watchdogConfig } from "./safeguards.ts";
import { absolutePath, endpoint, ipv4Endpoint, milliseconds, NAME } from "./values.ts";
import { vm } from "./vm.ts";

const agent = z
  .strictObject({
    name: identifier.meta({ description: "Name of this agent.", kind: NAME }),
    control: ipv4Endpoint.describe("This host's end of the replication link. The peer connects here."),
    api: endpoint.default({ host: "127.0.0.1", port: 7401 }).meta({
      description: "HTTP: `/metrics`, `/v1/status`, `/v1/divergences`. Payload is hidden unless on loopback.",
      otherwise: "`127.0.0.1:7401`",
    }),
    state_directory: absolutePath
      .default("/var/lib/colo-agent")
      .describe("Directory of the divergences and of the agent's memory of its VMs."),
    socket: absolutePath
      .optional()
      .describe("Unix socket with the same interface, and with the operator's commands."),
    log_level: z.enum(["error", "warn", "info", "debug"]).default("info").describe("Lowest level logged."),
  })
  .describe("This host's agent.");

const peer = z
  .strictObject({
    name: identifier.meta({ description: "Name of the other agent.", kind: NAME }),
    control: ipv4Endpoint.describe("The other agent's `agent.control`."),
  })
  .describe("The agent of the other host.");

const clientPath = z
  .strictObject({
    local: ipv4Endpoint.describe("This host's address on the clients' network (UDP)."),
    peer: ipv4Endpoint.describe("The peer's address there (UDP)."),
    key_file: absolutePath.describe(
      "Key that signs the heartbeats: the same on both hosts, 16 bytes or more, mode 600.",
    ),
  })
  .describe(
    "Heartbeats on the clients' network as well. Optional; without this table they use the replication " +
      "link only.",
  );

const heartbeat = z
  .strictObject({
    interval_ms: milliseconds(10, 10_000).default(100).describe("Time between two heartbeats."),
    timeout_ms: milliseconds(50, 600_000)
      .default(1_000)
      .describe("Silence after which the peer counts as lost."),
    /*
     * With the margin the default makes 1.3 s, so that a takeover is done when a client's TCP retransmits for
     * the third time, 1.4 s after the loss (RFC 6298: 0.2 s, doubled each time).
     */
    lease_ms: milliseconds(50, 600_000)
      .default(1_100)
      .describe("The kernel drops the primary's output this long after the last answered heartbeat."),
    margin_ms: milliseconds(0, 60_000)
      .default(200)
      .describe("Added to the lease before a takeover, for clock rates and scheduling."),
    restart_ms: milliseconds(0, 600_000)
      .default(10_000)
      .describe("Longest time for the peer's agent to return after `colo-agent restart`."),
    clock_drift_ppm: z
      .number()
      .int()
      .min(0)
      .max(100_000)
      .default(500)
      .describe("Largest error of a host's clock rate."),
  })
  .describe(
    "Times, the same on both hosts. [arbiters.md](arbiters.md#times) has the inequalities between them.",
  );

const tls = z
  .strictObject({
    directory: absolutePath.describe(
      "Directory with ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem and client-key.pem.",
    ),
    priority: z
      .string()
      .min(1)
      .optional()
      .meta({ description: "GnuTLS priority string.", otherwise: "QEMU's own" }),
  })
  .describe(
    "QEMU's own TLS for its migration and NBD streams, on both hosts or on neither " +
      "([encryption.md](encryption.md)). Optional.",
  );

export const schema = z.strictObject({
  agent,
  peer,
  client_path: clientPath.optional(),
  arbiter: arbiterConfig.default({ type: "none" }),
  heartbeat: heartbeat.prefault({}),
  tls: tls.optional(),
  fence: fenceConfig.optional(),
  watchdog: watchdogConfig.optional(),
  vm: z.array(vm).min(1, "needs at least one [[vm]]"),
});

export type ConfigTables = z.output<typeof schema>;
