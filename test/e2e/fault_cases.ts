/** The faults, each with what has to become of the VM. */
import type { LabFaults } from "../../src/lab/faults.ts";
import type { HostLetter } from "../../src/lab/network.ts";
import type { Random } from "../random.ts";
import { lasting, quiet } from "../until.ts";

export interface FaultScene {
  faults: LabFaults;
  /** Who holds the VM when the fault comes, and who keeps its replica. */
  primary: HostLetter;
  secondary: HostLetter;
  random: Random;
  startAgent(letter: HostLetter): void;
  restartAgent(letter: HostLetter): Promise<void>;
  startWitness(): void;
  /** Waits for an event of a host's QEMU. */
  nextEvent(letter: HostLetter, name: "STOP" | "RESUME"): Promise<void>;
}

/**
 * Who has the VM afterwards. "stays": it stays protected on the primary. "any": whoever; also if it stays
 * protected.
 */
type Outcome = "primary" | "secondary" | "either" | "stays" | "any";

export interface FaultCase {
  name: string;
  outcome: Outcome;
  /**
   * The fault comes while the VM is being protected (migration and first checkpoints), instead of once it is.
   */
  whileProtecting?: true;
  inject(scene: FaultScene): Promise<void> | void;
  /** Once the VM is reachable again: what was frozen goes on, what was cut is joined. */
  heal?(scene: FaultScene): Promise<void> | void;
}

/** Around the default lease of 1.1 s and its end with the margin, 1.3 s. */
const ABOUT_A_LEASE_MS = [800, 1_500] as const;

const killCase = (whose: "primary" | "secondary", what: "agent" | "qemu" | "both"): FaultCase => ({
  name: `${whose}-${what}-kill`,
  outcome: whose === "primary" ? "secondary" : "primary",
  inject: (scene) => scene.faults.kill(`${what}-${scene[whose]}`),
});

const powerCase = (whose: "primary" | "secondary"): FaultCase => ({
  name: `${whose}-host-loses-power`,
  outcome: whose === "primary" ? "secondary" : "primary",
  inject: (scene) => scene.faults.powerOff(scene[whose]),
});

/** Frozen until the other one has the VM, then killed, or set free: it must not do any harm. */
const freezeCase = (
  whose: "primary" | "secondary",
  what: "agent" | "qemu" | "both",
  then: "SIGCONT" | "SIGKILL",
): FaultCase => ({
  name: `${whose}-${what}-freezes-then-${then === "SIGCONT" ? "goes-on" : "dies"}`,
  outcome: whose === "primary" ? "secondary" : "primary",
  inject: (scene) => scene.faults.signal(`${what}-${scene[whose]}`, "SIGSTOP"),
  heal: (scene) => scene.faults.signal(`${what}-${scene[whose]}`, then),
});

/** Frozen for about as long as the lease: it goes on just when the other one takes over, or does not. */
const lapseCase = (whose: "primary" | "secondary", what: "agent" | "both"): FaultCase => ({
  name: `${whose}-${what}-freezes-for-about-a-lease`,
  outcome: "any",
  inject: async ({ faults, random, ...scene }) => {
    faults.signal(`${what}-${scene[whose]}`, "SIGSTOP");
    await lasting(random.integer(...ABOUT_A_LEASE_MS));
    faults.signal(`${what}-${scene[whose]}`, "SIGCONT");
  },
});

/** Far shorter than the lease: nothing has to happen, and nothing must break. */
const hiccupCase = (whose: "primary" | "secondary", what: "agent" | "qemu" | "both"): FaultCase => ({
  name: `${whose}-${what}-hiccup`,
  outcome: "any",
  inject: async ({ faults, random, ...scene }) => {
    faults.signal(`${what}-${scene[whose]}`, "SIGSTOP");
    await lasting(random.integer(50, 400));
    faults.signal(`${what}-${scene[whose]}`, "SIGCONT");
  },
});

/**
 * The kill comes some milliseconds after an event of a checkpoint: STOP of a VM, or RESUME of the secondary
 * (it has loaded the state).
 */
const checkpointCase = (
  at: "stop" | "loaded",
  whose: "primary" | "secondary",
  what: "qemu" | "both" | "agent",
  delayMsMax: number,
): FaultCase => ({
  name: `${whose}-${what}-kill-at-checkpoint-${at}${delayMsMax > 0 ? "-or-later" : ""}`,
  outcome: whose === "primary" ? "secondary" : "primary",
  inject: async (scene) => {
    if (at === "stop") await scene.nextEvent(scene.primary, "STOP");
    else await scene.nextEvent(scene.secondary, "RESUME");
    if (delayMsMax > 0) await lasting(scene.random.integer(1, delayMsMax));
    await scene.faults.kill(`${what}-${scene[whose]}`);
  },
});

/** As announced. */
const upgradeCase = (whose: "primary" | "secondary"): FaultCase => ({
  name: `${whose}-agent-restarts-as-announced`,
  outcome: "stays",
  inject: (scene) => scene.restartAgent(scene[whose]),
});

/** A primary's agent that is back in time goes on with its replica. */
const restartCase = (whose: "primary" | "secondary"): FaultCase => ({
  name: `${whose}-agent-restarts`,
  outcome: whose === "primary" ? "any" : "primary",
  inject: async (scene) => {
    await scene.faults.kill(`agent-${scene[whose]}`);
    scene.startAgent(scene[whose]);
  },
});

/** A fault that needs the arbiter finds it down; it comes back some time later. */
const withoutArbiter = (fault: FaultCase): FaultCase => ({
  ...fault,
  name: `arbiter-down-${fault.name}`,
  inject: async (scene) => {
    await scene.faults.kill("witness");
    await lasting(scene.random.integer(0, 300));
    await fault.inject(scene);
    await lasting(scene.random.integer(500, 2_500));
    scene.startWitness();
  },
});

/** The same with an arbiter that takes connections and does not answer. */
const withFrozenArbiter = (fault: FaultCase): FaultCase => ({
  ...fault,
  name: `arbiter-frozen-${fault.name}`,
  inject: async (scene) => {
    scene.faults.signal("witness", "SIGSTOP");
    await lasting(scene.random.integer(0, 300));
    await fault.inject(scene);
    await lasting(scene.random.integer(500, 2_500));
    scene.faults.signal("witness", "SIGCONT");
  },
});

/** Links that are cut until the VM is reachable again. */
const cut = (
  name: string,
  outcome: Outcome,
  inject: (faults: LabFaults, primary: HostLetter, secondary: HostLetter) => Promise<void>[],
): FaultCase => ({
  name,
  outcome,
  inject: async ({ faults, primary, secondary }) =>
    void (await Promise.all(inject(faults, primary, secondary))),
  heal: (scene) => scene.faults.healLinks(),
});

const healing = (fault: FaultCase): FaultCase => ({ ...fault, heal: (scene) => scene.faults.healLinks() });

const whileProtecting = (fault: FaultCase): FaultCase => ({
  ...fault,
  name: `while-protecting-${fault.name}`,
  outcome: fault.outcome === "any" ? "any" : "primary",
  whileProtecting: true,
});

const bothCut = cut("replication-silent", "either", (faults, p, s) => [
  faults.loseReplicationFrom(p),
  faults.loseReplicationFrom(s),
]);

export const FAULT_CASES: readonly FaultCase[] = [
  killCase("primary", "qemu"),
  killCase("primary", "agent"),
  killCase("primary", "both"),
  killCase("secondary", "qemu"),
  killCase("secondary", "agent"),
  killCase("secondary", "both"),
  healing(powerCase("primary")),
  healing(powerCase("secondary")),

  freezeCase("primary", "qemu", "SIGCONT"),
  freezeCase("primary", "qemu", "SIGKILL"),
  freezeCase("primary", "agent", "SIGCONT"),
  freezeCase("primary", "agent", "SIGKILL"),
  freezeCase("primary", "both", "SIGCONT"),
  freezeCase("primary", "both", "SIGKILL"),
  freezeCase("secondary", "qemu", "SIGCONT"),
  freezeCase("secondary", "qemu", "SIGKILL"),
  freezeCase("secondary", "agent", "SIGCONT"),
  freezeCase("secondary", "agent", "SIGKILL"),
  freezeCase("secondary", "both", "SIGCONT"),
  freezeCase("secondary", "both", "SIGKILL"),
  hiccupCase("primary", "both"),
  hiccupCase("secondary", "both"),
  lapseCase("primary", "agent"),
  lapseCase("primary", "both"),
  lapseCase("secondary", "agent"),
  lapseCase("secondary", "both"),
  restartCase("primary"),
  restartCase("secondary"),
  upgradeCase("primary"),
  upgradeCase("secondary"),

  bothCut,
  cut("replication-silent-from-primary", "either", (faults, p) => [faults.loseReplicationFrom(p)]),
  cut("replication-silent-from-secondary", "either", (faults, _p, s) => [faults.loseReplicationFrom(s)]),
  cut("replication-cable-pulled", "either", (faults) => [faults.pullReplication()]),
  cut("primary-uplink-pulled", "secondary", (faults, p) => [faults.pullUplink(p)]),
  cut("primary-isolated", "secondary", (faults, p, s) => [
    faults.loseReplicationFrom(p),
    faults.loseReplicationFrom(s),
    faults.pullUplink(p),
  ]),
  cut("secondary-isolated", "primary", (faults, p, s) => [
    faults.loseReplicationFrom(p),
    faults.loseReplicationFrom(s),
    faults.pullUplink(s),
  ]),
  // Its VM still reaches the clients, and so would anything that it sent too late.
  cut("primary-reaches-only-clients", "secondary", (faults, p, s) => [
    faults.loseReplicationFrom(p),
    faults.loseReplicationFrom(s),
    faults.loseClientPathFrom(p),
    faults.loseArbiterFrom(p),
  ]),
  cut("primary-cut-from-arbiter-and-replication", "secondary", (faults, p, s) => [
    faults.loseReplicationFrom(p),
    faults.loseReplicationFrom(s),
    faults.loseArbiterFrom(p),
  ]),
  cut("primary-cut-from-arbiter", "stays", (faults, p) => [faults.loseArbiterFrom(p)]),
  cut("client-path-silent", "stays", (faults, p) => [faults.loseClientPathFrom(p)]),
  {
    name: "replication-silent-for-about-a-lease",
    outcome: "any",
    inject: async ({ faults, random, primary, secondary }) => {
      await Promise.all([faults.loseReplicationFrom(primary), faults.loseReplicationFrom(secondary)]);
      await lasting(random.integer(...ABOUT_A_LEASE_MS));
      await faults.healLinks();
    },
  },
  {
    name: "secondary-uplink-pulled",
    outcome: "any",
    inject: async (scene) => {
      await scene.faults.pullUplink(scene.secondary);
      await lasting(1_500);
      await scene.faults.healLinks();
    },
  },

  {
    name: "arbiter-down",
    outcome: "stays",
    inject: async (scene) => {
      await scene.faults.kill("witness");
      await quiet(2_000); // nothing changes
      scene.startWitness();
    },
  },
  withoutArbiter(killCase("primary", "qemu")),
  healing(withoutArbiter(powerCase("primary"))),
  withoutArbiter(killCase("secondary", "both")),
  withoutArbiter(bothCut),
  withFrozenArbiter(killCase("primary", "both")),
  withFrozenArbiter(killCase("secondary", "agent")),

  checkpointCase("stop", "primary", "qemu", 0),
  checkpointCase("stop", "primary", "qemu", 25),
  checkpointCase("loaded", "primary", "qemu", 0),
  checkpointCase("stop", "primary", "both", 25),
  checkpointCase("loaded", "primary", "both", 3),
  checkpointCase("stop", "primary", "agent", 25),
  checkpointCase("stop", "secondary", "qemu", 0),
  checkpointCase("stop", "secondary", "both", 25),
  checkpointCase("loaded", "secondary", "qemu", 0),
  checkpointCase("stop", "secondary", "agent", 25),

  whileProtecting(killCase("secondary", "qemu")),
  whileProtecting(killCase("secondary", "both")),
  whileProtecting(healing(powerCase("secondary"))),
  whileProtecting(freezeCase("secondary", "both", "SIGCONT")),
  whileProtecting(bothCut),
  whileProtecting(restartCase("primary")),
];
