/**
 * The tables of the agent's configuration file: which keys there are, of what kind, and their defaults. Each table is
 * strict, so that a misspelt key is an error.
 *
 * docs/configuration.md is the reader's form of this schema.
 */
import { z } from "zod";
import { identifier } from "../failover/vm_record.ts";
import { arbiterConfig } from "./arbiter.ts";
import { fenceConfig, watchdogConfig } from "./safeguards.ts";
import { absolutePath, endpoint, ipv4Endpoint, milliseconds } from "./values.ts";
import { vm } from "./vm.ts";

export const schema = z.strictObject({
  agent: z.strictObject({
    name: identifier,
    /** Where this agent listens for its peer; the address is this host's end of the replication link. */
    control: ipv4Endpoint,
    /** HTTP: /metrics, /v1/status. */
    api: endpoint.default({ host: "127.0.0.1", port: 7401 }),
    /** Where divergences are kept. */
    state_directory: absolutePath.default("/var/lib/colo-agent"),
    /** The same HTTP interface on a unix socket, for commands on this host. */
    socket: absolutePath.optional(),
    log_level: z.enum(["error", "warn", "info", "debug"]).default("info"),
  }),
  peer: z.strictObject({
    name: identifier,
    control: ipv4Endpoint,
  }),
  /** Heartbeats over the clients' network too. */
  client_path: z
    .strictObject({
      /** This host's address there, and the peer's. */
      local: ipv4Endpoint,
      peer: ipv4Endpoint,
      /** The key that signs them, the same on both hosts. */
      key_file: absolutePath,
    })
    .optional(),
  arbiter: arbiterConfig.default({ type: "none" }),
  heartbeat: z
    .strictObject({
      interval_ms: milliseconds(10, 10_000).default(100),
      /** Silence after which the peer counts as lost. */
      timeout_ms: milliseconds(50, 600_000).default(1_000),
      /**
       * The kernel drops the primary's output this long after the last heartbeat that the secondary acknowledged.
       * The default makes 1.3 s with the margin, so that a takeover is done when a client's TCP retransmits for the
       * third time, 1.4 s after the loss (RFC 6298: 0.2 s, doubled each time).
       */
      lease_ms: milliseconds(50, 600_000).default(1_100),
      /** Added to the lease before a takeover: clock rate differences and scheduling. */
      margin_ms: milliseconds(0, 60_000).default(200),
      /** A peer whose restart was announced (`colo-agent restart`) counts as lost only after this time. */
      restart_ms: milliseconds(0, 600_000).default(10_000),
      /** How much a host's clock may be too fast or too slow, in parts per million. */
      clock_drift_ppm: z.number().int().min(0).max(100_000).default(500),
    })
    .prefault({}),
  /** QEMU's own TLS for its migration and NBD streams. */
  tls: z
    .strictObject({
      /** Of tls-creds-x509: ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem, client-key.pem. */
      directory: absolutePath,
      /** GnuTLS's priority string. */
      priority: z.string().min(1).optional(),
    })
    .optional(),
  fence: fenceConfig.optional(),
  watchdog: watchdogConfig.optional(),
  vm: z.array(vm).min(1, "needs at least one [[vm]]"),
});

export type ConfigTables = z.output<typeof schema>;
