/**
 * Whether a QEMU can do COLO, found out before anything depends on it.
 *
 * Asking QEMU is not enough: 10.0 offers x-colo and then silently completes the migration, 7.2 and 10.0.13
 * enter COLO and lock up at a checkpoint under TCG. So the version is judged too, by what has been tried
 * (docs and judgeVersion below).
 */
import { z } from "zod";
import type { QmpClient, QmpVersion } from "../qmp/client.ts";
import { QmpCommandError, QmpError } from "../qmp/errors.ts";
import { migrateInfo, qomEntries, query, runState } from "../qmp/query.ts";

/** This QEMU cannot protect a VM; the message says why and what works. */
export class QemuUnsuitableError extends QmpError {
  override name = "QemuUnsuitableError";
}

export const QEMU_THAT_WORKS = "QEMU 11.1 (11.1.2 and 11.1.3 were tried)";

export interface VersionVerdict {
  verdict: "works" | "untried" | "refused";
  /** A sentence for the operator. */
  sentence: string;
}

/** What is known of a version. Pure. */
export function judgeVersion(version: Pick<QmpVersion, "major" | "minor" | "micro">): VersionVerdict {
  const { major, minor, micro } = version;
  const name = `QEMU ${major}.${minor}.${micro}`;
  const refuse = (why: string): VersionVerdict => ({
    verdict: "refused",
    sentence: `${name} cannot be used for COLO: ${why} Use ${QEMU_THAT_WORKS}, the same on both hosts.`,
  });
  const release = major * 100 + minor;
  if (release < 800)
    return refuse(
      "with this agent's capabilities (return-path) its migration fails, and under TCG it locks up at a " +
        "checkpoint.",
    );
  if (release < 1000) return refuse("its secondary aborts when COLO starts.");
  if (release < 1002) return refuse("10.0 and 10.1 never enter COLO, and 10.0.13 locks up at a checkpoint.");
  if (release < 1101) {
    return {
      verdict: "untried",
      sentence: `${name} has not been tried with COLO; ${QEMU_THAT_WORKS} is known to work.`,
    };
  }
  if (release === 1101) return { verdict: "works", sentence: `${name} is known to work with COLO.` };
  return {
    verdict: "untried",
    sentence: `${name} has not been tried with COLO; ${QEMU_THAT_WORKS} is known to work.`,
  };
}

export interface QemuFacts {
  /**
   * Why this QEMU can be no part of a COLO pair, a sentence that says what to take instead; undefined if it
   * can.
   */
  unsuitable: string | undefined;
  version: QmpVersion;
  verdict: VersionVerdict;
  /** Running under KVM; false means TCG or another accelerator. */
  kvm: boolean;
  oob: boolean;
  yank: boolean;
  /** All drivers of block replication are compiled in (nbd, quorum, replication). */
  blockReplication: boolean;
  /** Sentences on settings of this VM that work against it. */
  warnings: readonly string[];
  /** query-status, e.g. "running", "inmigrate", "colo". */
  runState: string;
  /** query-migrate, e.g. "none", "colo", "completed". */
  migrationStatus: string;
}

const CAPABILITIES_NEEDED = ["x-colo", "return-path", "events", "pause-before-switchover"] as const;
const COMMANDS_NEEDED = ["x-colo-lost-heartbeat", "yank", "query-yank", "announce-self"] as const;
const DISK_DRIVERS_NEEDED = ["nbd", "quorum", "replication"] as const;

const capabilityList = z.array(z.object({ capability: z.string() }));
const commandList = z.array(z.object({ name: z.string() }));
const kvmInfo = z.object({ enabled: z.boolean() });
/** Of query-qmp-schema: what finds the branches of a command's argument. */
const schemaEntries = z.array(
  z.object({
    name: z.string(),
    "arg-type": z.string().optional(),
    variants: z.array(z.object({ case: z.string() })).optional(),
  }),
);

const TCG_WARNING =
  "This QEMU runs without KVM: after a checkpoint its secondary would run stale code with a fast clock. " +
  "Use KVM, or for tests the QEMU of `colo-agent lab`, which load a plugin against it " +
  "(src/lab/tcg_checkpoint.c).";

/**
 * As inspectQemu(), for who needs a QEMU that can do COLO.
 * @throws QemuUnsuitableError if it is known not to work or lacks something COLO needs; other QmpErrors if it
 *   does not answer
 */
export async function checkQemu(client: QmpClient): Promise<QemuFacts> {
  const verdict = judgeVersion(client.version);
  if (verdict.verdict === "refused") throw new QemuUnsuitableError(verdict.sentence);
  const facts = await inspectQemu(client);
  if (facts.unsuitable !== undefined) throw new QemuUnsuitableError(facts.unsuitable);
  return facts;
}

/** Asks a QEMU what it is and what it offers. Throws a QmpError if it does not answer. */
export async function inspectQemu(client: QmpClient): Promise<QemuFacts> {
  const verdict = judgeVersion(client.version);
  const [capabilities, commands, kvm, status, migration, schema] = await Promise.all([
    query(client, capabilityList, "query-migrate-capabilities"),
    query(client, commandList, "query-commands"),
    query(client, kvmInfo, "query-kvm"),
    query(client, runState, "query-status"),
    query(client, migrateInfo, "query-migrate"),
    query(client, schemaEntries, "query-qmp-schema"),
  ]);
  const missing = [
    ...CAPABILITIES_NEEDED.filter((name) => !capabilities.some((entry) => entry.capability === name)).map(
      (name) => `migration capability ${name}`,
    ),
    ...COMMANDS_NEEDED.filter((name) => !commands.some((entry) => entry.name === name)).map(
      (name) => `command ${name}`,
    ),
  ];
  if (!client.oob) missing.push("out-of-band commands (without them a hung peer cannot be cut off)");
  const lacking =
    missing.length === 0
      ? undefined
      : `This QEMU ${client.version.major}.${client.version.minor} lacks ${missing.join(", ")}. Use ` +
        `${QEMU_THAT_WORKS}, built with replication.`;
  const drivers = blockDrivers(schema);
  return {
    unsuitable: verdict.verdict === "refused" ? verdict.sentence : lacking,
    version: client.version,
    verdict,
    kvm: kvm.enabled,
    oob: client.oob,
    yank: commands.some((entry) => entry.name === "query-yank"),
    blockReplication: DISK_DRIVERS_NEEDED.every((driver) => drivers.has(driver)),
    warnings: [
      ...(kvm.enabled ? [] : [TCG_WARNING]),
      ...(lacking === undefined ? await cardsThatAnnounce(client) : []).map(
        (card) =>
          `Network card ${card} has guest_announce=on: after each checkpoint the secondary's guest sends ` +
          "ARP and neighbour " +
          "discovery that the primary's does not, which is a divergence. Start both QEMUs with " +
          "guest_announce=off on it.",
      ),
    ],
    runState: status.status,
    migrationStatus: migration.status,
  };
}

/**
 * virtio-net asks the guest to announce itself whenever its state has been loaded (hw/net/virtio-net.c,
 * virtio_net_post_load_device): on a secondary at every checkpoint. QEMU's own announcement at a failover
 * does not need it.
 */
async function cardsThatAnnounce(client: QmpClient): Promise<string[]> {
  const cards: string[] = [];
  for (const container of ["/machine/peripheral", "/machine/peripheral-anon"]) {
    let devices: z.output<typeof qomEntries>;
    try {
      devices = await query(client, qomEntries, "qom-list", { path: container });
    } catch (error) {
      if (error instanceof QmpCommandError) continue; // -machine none has neither
      throw error;
    }
    for (const { name, type } of devices) {
      if (!/^child<virtio-net-/.test(type)) continue;
      const path = `${container}/${name}`;
      if ((await client.execute("qom-get", { path, property: "guest_announce" })) === true) cards.push(path);
    }
  }
  return cards;
}

/**
 * The drivers blockdev-add takes: the branches of its argument, a union (docs/devel/qapi-code-gen,
 * introspection).
 */
function blockDrivers(schema: z.output<typeof schemaEntries>): Set<string> {
  const command = schema.find((entry) => entry.name === "blockdev-add");
  const argument = schema.find((entry) => entry.name === command?.["arg-type"]);
  return new Set(argument?.variants?.map((variant) => variant.case) ?? []);
}
