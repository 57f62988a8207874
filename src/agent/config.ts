/**
 * The agent's configuration file: TOML, checked strictly, so that a typing error is told before anything is touched.
 *
 * docs/configuration.md is the reader's form of this schema.
 */
import { availableParallelism } from "node:os";
import { z } from "zod";
import { arbiterConfig } from "../arbiter/config.ts";
import { parseRules } from "../compare/rules.ts";
import { WORKERS_MAX } from "../ffi/layout.ts";
import { PROXY_KINDS } from "../proxy/proxy.ts";
import { managedDiskFields, managedNicFields, qemuConfig, qemuSettings } from "../qemu/config.ts";
import { type QemuSettings, qemuPaths } from "../qemu/settings.ts";
import { fenceConfig } from "./fence.ts";
import { timingMistakes } from "./timing.ts";
import { watchdogConfig } from "./watchdog.ts";

const port = z.number().int().min(1).max(65535);
const milliseconds = (min: number, max: number) => z.number().int().min(min).max(max);

const ipv4 = z
  .string()
  .regex(/^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/, "must be an IPv4 address such as 198.18.1.1")
  .refine((s) => s.split(".").every((part) => Number(part) <= 255), "has a part above 255");

const endpoint = z
  .string()
  .regex(/^[^\s:]+:\d{1,5}$/, "must be ADDRESS:PORT")
  .transform((s) => {
    const at = s.lastIndexOf(":");
    return { host: s.slice(0, at), port: Number(s.slice(at + 1)) };
  })
  .refine((e) => e.port >= 1 && e.port <= 65535, "has a port outside 1..65535");

const interfaceName = z
  .string()
  .min(1)
  .max(15, "is longer than the 15 characters of an interface name")
  .regex(/^[^\s/]+$/, "must not hold blanks or slashes");

const identifier = z.string().regex(/^[a-z0-9][a-z0-9-]{0,31}$/, "must be 1-32 of a-z, 0-9 and -");

/** Node names of QEMU have at most 31 characters. */
const nodeName = z.string().min(1).max(31, "is longer than the 31 characters of a node name");

const disk = z.strictObject({
  /** The same on both hosts. */
  name: z
    .string()
    .regex(/^[a-z0-9][a-z0-9-]{0,15}$/, "must be 1-16 of a-z, 0-9 and -")
    .optional(),
  /** Node of the quorum that the VM's drive sits on, the same on both hosts. */
  quorum_node: nodeName.optional(),
  /** Node that the secondary exports over NBD: its copy of the disk. */
  export_node: nodeName.optional(),
  ...managedDiskFields,
});

const DISK_TABLES =
  "disks are tables now: write [[vm.disk]] with quorum_node and export_node for each disk, nbd_port above them in [[vm]], and no [[vm.disk]] for a VM without a disk";

/** With the names filled in, by position. */
const disks = z
  .array(disk, { error: (issue) => (Array.isArray(issue.input) ? undefined : DISK_TABLES) })
  .default([])
  .transform((list) =>
    list.map(({ name, quorum_node, export_node, ...rest }, index) => {
      const named = name ?? `disk${index}`;
      return {
        ...rest,
        name: named,
        quorum_node: quorum_node ?? `colo-${named}`,
        export_node: export_node ?? named,
      };
    }),
  )
  .superRefine((list, context) => {
    const seen = new Set<string>();
    for (const one of list) {
      const names = [`disk ${one.name}`, ...Object.values(nodesOf(one)).map((node) => `node ${node}`)];
      for (const what of names) {
        if (seen.has(what)) context.addIssue({ code: "custom", message: `two disks use the same ${what}` });
        seen.add(what);
      }
    }
  });

/** QEMU's nodes of a disk: those that are there, and those that protection adds. */
export function nodesOf(one: { name: string; quorum_node: string; export_node: string }): {
  quorum: string;
  base: string;
  replication: string;
  nbd: string;
} {
  return {
    quorum: one.quorum_node,
    base: one.export_node,
    replication: `colo-replica-${one.name}`,
    nbd: `colo-nbd-${one.name}`,
  };
}

const checkpoint = z.strictObject({
  /** Longest time between two checkpoints, in milliseconds. */
  period_ms: milliseconds(100, 3_600_000).default(20_000),
  /** Longest time a frame waits for its counterpart before a checkpoint is made. */
  max_wait_ms: milliseconds(10, 60_000).default(250),
  /** Pause between the end of one checkpoint and the next for the same reason: keeps a VM that always diverges running. */
  min_interval_ms: milliseconds(0, 60_000).default(20),
  /** Longest time given to the taps to be read empty before a checkpoint. */
  input_drain_ms: milliseconds(0, 1_000).default(20),
  /** From the request to the VM's STOP event. */
  stop_timeout_ms: milliseconds(100, 600_000).default(1_500),
  /** From STOP to the report that the secondary has loaded the state. */
  load_timeout_ms: milliseconds(100, 600_000).default(30_000),
});

/**
 * Comparing and releasing keeps up with 10 Gbit/s on one core (docs/performance.md), and the VM, its QEMU and the
 * kernel want cores too.
 */
function defaultWorkers(cores: number): number {
  if (cores < 4) return 1;
  return cores < 8 ? 2 : 4;
}

const percent = z.number().int().min(1).max(100);

const overlay = z
  .strictObject({
    /** With [vm.qemu]: where overlays are made, best in a RAM disk; a folder with the VM's name is made in it. */
    directory: z.string().startsWith("/", "must be an absolute path").optional(),
    /** Overlays of all disks may take so much; 0: what the file system has. */
    size_bytes: z.number().int().min(0).max(1e15).default(0),
    /** Of that: a checkpoint is made, which empties them. */
    checkpoint_percent: percent.default(50),
    /** Of that, after a checkpoint: the replica is given up, and the VM runs alone. */
    give_up_percent: percent.default(80),
  })
  .refine((one) => one.checkpoint_percent <= one.give_up_percent, {
    message: "checkpoint_percent is above give_up_percent; a checkpoint is to be tried first",
  });

const resync = z.strictObject({
  /** Of the copies of all disks together; 0: no limit. `colo-agent tune` changes it while they run. */
  bytes_per_second: z.number().int().min(0).max(1_000_000_000_000).default(0),
});

/** Of each worker. Passing one of them costs a checkpoint; nothing is dropped. */
const limits = z.strictObject({
  held_frames_max: z.number().int().min(16).max(1_048_576).default(65_536),
  held_frames_per_flow_max: z.number().int().min(16).max(1_048_576).default(16_384),
  flows_max: z.number().int().min(16).max(1_048_576).default(65_536),
});

/** UDP port of the tunnel with id 1; those of the others follow. */
const TUNNEL_PORT_FIRST = 4790;
const PROXY_PORT_BASE = 7500;

/** The order is the same on both hosts. */
const nic = z
  .strictObject({
    tap: interfaceName,
    /** 1..255, the same on both hosts; one per interface of all VMs. Part of the VXLAN network identifier. */
    tunnel_id: z.number().int().min(1).max(255).default(1),
    /** UDP port of this interface's tunnel, the same on both hosts. Without it: 4789 + tunnel_id. */
    tunnel_port: port.optional(),
    ...managedNicFields,
    /** proxy = "qemu": the first of two TCP ports of the primary's QEMU, the same on both hosts. Without it: 7500 + 2 * tunnel_id. */
    proxy_port: port.max(65534).optional(),
    /** proxy = "qemu": QEMU's netdev on this tap; needed only if QEMU was handed the tap as a file descriptor. */
    netdev: z.string().min(1).optional(),
  })
  .transform(({ tunnel_port, proxy_port, ...rest }) => ({
    ...rest,
    tunnel_port: tunnel_port ?? TUNNEL_PORT_FIRST - 1 + rest.tunnel_id,
    proxy_port: proxy_port ?? PROXY_PORT_BASE + 2 * rest.tunnel_id,
  }));

const vm = z.strictObject({
  name: identifier,
  /** What holds and compares the VM's packets. */
  proxy: z.enum(PROXY_KINDS).default("ebpf"),
  nic: z.array(nic).min(1, "needs at least one [[vm.nic]]").max(8, "has more than 8 network interfaces"),
  /** The QMP socket of a QEMU that somebody else starts. */
  qmp: z.string().startsWith("/", "must be an absolute path of a unix socket").optional(),
  /** A QEMU that the agent starts itself. */
  qemu: qemuConfig.optional(),
  /** Who holds the VM when no record of it exists yet. */
  initial_role: z.enum(["primary", "secondary"]),
  /** TCP port where the secondary's QEMU waits for the migration stream. */
  migrate_port: port.default(7410),
  /** NBD server of the secondary's QEMU, on the replication network. */
  nbd_port: port.default(7420),
  /** None: a VM without a disk to replicate. */
  disk: disks,
  /** Threads that each interface's output is shared among. */
  workers: z.number().int().min(1).max(WORKERS_MAX).default(defaultWorkers(availableParallelism())),
  /** Each of a worker's two packet rings of an interface: what is held and what waits for comparison has to fit. */
  ring_bytes: z
    .number()
    .int()
    .min(64 << 10)
    .max(1 << 30)
    .refine((bytes) => (bytes & (bytes - 1)) === 0, "must be a power of two")
    .default(64 << 20),
  /** TCP connections over one interface of a secondary, or of a VM that took over, that are rewritten at a time. */
  connections_max: z.number().int().min(64).max(4_000_000).default(65_536),
  /** The interface to the VM's clients; without a carrier there the VM is handed over to a host that has one. */
  uplink: interfaceName.optional(),
  /** For so long QEMU may leave a question open before it counts as hung, in milliseconds. */
  qemu_timeout_ms: milliseconds(100, 600_000).default(1_000),
  /** Traffic that is released at once and not compared, one rule a line (src/compare/rules.ts). */
  passthrough: z.array(z.string()).default([]),
  /** Byte ranges of UDP payloads that are not compared, one rule a line. */
  ignore: z.array(z.string()).default([]),
  limits: limits.default(() => limits.parse({})),
  checkpoint: checkpoint.default(() => checkpoint.parse({})),
  resync: resync.default(() => resync.parse({})),
  overlay: overlay.default(() => overlay.parse({})),
});

const schema = z.strictObject({
  agent: z.strictObject({
    name: identifier,
    /** Where this agent listens for its peer; the address is this host's end of the replication link. */
    control: endpoint,
    /** HTTP: /metrics, /v1/status. */
    api: endpoint.default({ host: "127.0.0.1", port: 7401 }),
    /** Where divergences are kept. */
    state_directory: z.string().startsWith("/", "must be an absolute path").default("/var/lib/colo-agent"),
    /** The same HTTP interface on a unix socket, for commands on this host. */
    socket: z.string().startsWith("/", "must be an absolute path").optional(),
    log_level: z.enum(["error", "warn", "info", "debug"]).default("info"),
  }),
  peer: z.strictObject({
    name: identifier,
    control: endpoint,
  }),
  /** Heartbeats over the clients' network too. */
  client_path: z
    .strictObject({
      /** This host's address there, and the peer's. */
      local: endpoint,
      peer: endpoint,
      /** The key that signs them, the same on both hosts. */
      key_file: z.string().startsWith("/", "must be an absolute path"),
    })
    .optional(),
  arbiter: arbiterConfig.default({ type: "none" }),
  heartbeat: z
    .strictObject({
      interval_ms: milliseconds(10, 10_000).default(100),
      /** Silence after which the peer counts as lost. */
      timeout_ms: milliseconds(50, 600_000).default(1_000),
      /** The kernel drops the primary's output this long after the last heartbeat that the secondary acknowledged. */
      /* With the margin 1.3 s: a takeover is done when a client's TCP tries for the third time, 1.4 s after the loss (RFC 6298, 0.2 s doubled). */
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
      directory: z.string().startsWith("/", "must be an absolute path"),
      /** GnuTLS's priority string. */
      priority: z.string().min(1).optional(),
    })
    .optional(),
  fence: fenceConfig.optional(),
  watchdog: watchdogConfig.optional(),
  vm: z.array(vm).min(1, "needs at least one [[vm]]"),
});

type RawConfig = z.output<typeof schema>;
/** `qmp`: where QEMU's socket is, whoever starts it; `managed`: how the agent starts it, undefined if somebody else does. */
export type VmConfig = Omit<RawConfig["vm"][number], "qmp" | "qemu"> & {
  qmp: string;
  managed: (QemuSettings & { restart: boolean }) | undefined;
};
export type Config = Omit<RawConfig, "vm"> & { vm: VmConfig[] };
export type DiskConfig = VmConfig["disk"][number];
export type HeartbeatConfig = Config["heartbeat"];

/** The file cannot be used; the message says where and why, one line per mistake. */
/** Who asks the arbiter, and with whom it shares its VMs. */
export function agentPair({ agent, peer }: Pick<Config, "agent" | "peer">): { name: string; peer: string } {
  return { name: agent.name, peer: peer.name };
}

export class ConfigError extends Error {
  override name = "ConfigError";
}

/** Parses and checks `text`; `origin` names the file in messages. Throws {@link ConfigError}. */
export function parseConfig(text: string, origin: string): Config {
  let raw: unknown;
  try {
    raw = Bun.TOML.parse(text);
  } catch (error) {
    throw new ConfigError(`${origin}: not valid TOML: ${(error as Error).message}`, { cause: error });
  }
  if (typeof raw === "object" && raw !== null && "witness" in raw) {
    throw new ConfigError(
      `${origin}: [witness] is now [arbiter]: write type = "witness" below it, beside url (docs/arbiters.md)`,
    );
  }
  refuseScalarNic(raw, origin);
  const result = schema.safeParse(raw);
  if (!result.success) {
    const lines = result.error.issues.map((issue) => {
      const where = issue.path.length > 0 ? issue.path.join(".") : "top level";
      return `${origin}: ${where}: ${issue.message}`;
    });
    throw new ConfigError(lines.join("\n"));
  }
  const config: Config = {
    ...result.data,
    vm: result.data.vm.map((vm) => withQemu(vm, result.data, origin)),
  };
  if (
    !ipv4.safeParse(config.agent.control.host).success ||
    !ipv4.safeParse(config.peer.control.host).success
  ) {
    throw new ConfigError(
      `${origin}: agent.control and peer.control need IPv4 addresses of the replication link, such as 198.18.1.1:7400`,
    );
  }
  const mistakes = timingMistakes({
    heartbeat: config.heartbeat,
    ...(config.arbiter.type === "none"
      ? {}
      : {
          arbiter: {
            timeout_ms: config.arbiter.timeout_ms,
            endpoints: config.arbiter.type === "etcd" ? config.arbiter.endpoints.length : 1,
          },
        }),
    ...(config.watchdog === undefined ? {} : { watchdog: config.watchdog }),
  });
  if (mistakes.length > 0) {
    throw new ConfigError(mistakes.map((mistake) => `${origin}: ${mistake}`).join("\n"));
  }
  if (config.agent.name === config.peer.name) {
    throw new ConfigError(
      `${origin}: agent.name and peer.name are both "${config.agent.name}"; they must differ`,
    );
  }
  for (const machine of config.vm) {
    try {
      parseRules(machine);
    } catch (error) {
      throw new ConfigError(`${origin}: vm ${machine.name}: ${(error as Error).message}`, { cause: error });
    }
  }
  for (const key of ["name", "qmp", "migrate_port"] as const) checkUnique(config.vm, key, "VMs", origin);
  const withDisks = config.vm.filter((machine) => machine.disk.length > 0);
  checkUnique(withDisks, "nbd_port", "VMs with disks", origin);
  const nics = config.vm.flatMap((machine) => machine.nic);
  for (const key of ["tap", "tunnel_id", "tunnel_port", "proxy_port"] as const) {
    checkUnique(nics, key, "network interfaces ([[vm.nic]])", origin);
  }
  return config;
}

function checkUnique<K extends string>(
  items: readonly Record<K, unknown>[],
  key: K,
  what: string,
  origin: string,
): void {
  const seen = new Set<unknown>();
  for (const { [key]: value } of items) {
    if (seen.has(value)) {
      throw new ConfigError(`${origin}: two ${what} have the same ${key} (${value}); it must be unique`);
    }
    seen.add(value);
  }
}

/** The spelling of before a VM could have several network interfaces is told with the one of today. */
function refuseScalarNic(raw: unknown, origin: string): void {
  const { vm } = (raw ?? {}) as { vm?: unknown };
  if (!Array.isArray(vm)) return;
  for (const machine of vm as Record<string, unknown>[]) {
    const old = ["tap", "tunnel_id", "tunnel_port"].filter((key) => key in machine);
    if (old.length === 0) continue;
    const lines = old.map((key) => `  ${key} = ${JSON.stringify(machine[key])}`);
    throw new ConfigError(
      `${origin}: vm ${String(machine.name)}: ${old.join(", ")} belong${old.length === 1 ? "s" : ""} to a network interface now; ` +
        `behind the VM's other settings write\n  [[vm.nic]]\n${lines.join("\n")}`,
    );
  }
}

function withQemu(
  { qmp, qemu, ...vm }: RawConfig["vm"][number],
  config: RawConfig,
  origin: string,
): VmConfig {
  const mistake = (message: string, cause?: unknown) =>
    new ConfigError(`${origin}: vm ${vm.name}: ${message}`, { cause });
  if (qemu === undefined) {
    if (qmp === undefined) {
      throw mistake(
        "needs qmp, the QMP socket of its QEMU, or [vm.qemu], with which the agent starts QEMU itself",
      );
    }
    return { ...vm, qmp, managed: undefined };
  }
  if (qmp !== undefined) {
    throw mistake("qmp is for a QEMU that somebody else starts; leave it out beside [vm.qemu]");
  }
  try {
    const managed = qemuSettings({
      name: vm.name,
      qemu,
      stateDirectory: config.agent.state_directory,
      disks: vm.disk,
      nics: vm.nic,
      overlayDirectory: vm.overlay.directory,
      overlayBytes: vm.overlay.size_bytes,
    });
    return { ...vm, qmp: qemuPaths(managed.directory).qmp, managed: { ...managed, restart: qemu.restart } };
  } catch (error) {
    throw mistake((error as Error).message, error);
  }
}

/** Reads and checks a configuration file. Throws {@link ConfigError} when it is missing or wrong. */
export async function loadConfig(path: string): Promise<Config> {
  const file = Bun.file(path);
  if (!(await file.exists())) {
    throw new ConfigError(`${path}: no such file; give the configuration with --config FILE`);
  }
  return parseConfig(await file.text(), path);
}
