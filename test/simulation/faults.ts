/**
 * What goes wrong in a run, and when: drawn from the seed. Every fault heals or is repaired by the
 * supervisor.
 */
import type { Action } from "../../src/failover/actions.ts";
import type { Request } from "../../src/failover/events.ts";
import type { Phase } from "../../src/failover/state.ts";
import type { Agent } from "./agent.ts";
import { type Host, type Name, other } from "./host.ts";
import type { LinkPath } from "./network.ts";
import type { World } from "./world.ts";

type Fault = (world: World, host: Host) => void;

function cutFor(world: World, what: string, ms: number): void {
  world.network.cut(what);
  world.after(ms, () => world.network.heal(what));
}

function cutPath(path: string): Fault {
  return (world, host) => {
    const ms = world.random.skewed(50, 9_000);
    const which = world.random.pick(["out", "in", "both"]);
    if (which !== "in") cutFor(world, `${path}:${host.name}`, ms);
    if (which !== "out") cutFor(world, `${path}:${other(host.name)}`, ms);
  };
}

function isolate(world: World, name: Name, paths: readonly LinkPath[], ms: number): void {
  for (const path of paths) {
    cutFor(world, `${path}:${name}`, ms);
    cutFor(world, `${path}:${other(name)}`, ms);
  }
}

function interruptBetweenActions(what: (agent: Agent) => void): Fault {
  return (world, { agent }) => {
    if (agent === undefined) return;
    agent.interrupt = {
      afterActions: Math.floor(world.random.between(0, 6)),
      run: () => what(agent),
    };
  };
}

function freeze(agent: Agent | undefined, ms = agent === undefined ? 0 : freezeMs(agent)): void {
  if (agent === undefined || agent.frozen) return;
  const { world } = agent;
  agent.freeze();
  world.after(ms, () => world.thaw(agent));
}

function freezeMs({ world: { random } }: Agent): number {
  return random.chance(0.5) ? random.skewed(10, 3_000) : random.between(300, 5_000);
}

/** The answers to what it has just asked wait for it then. */
const freezeAfterHeartbeat: Fault = (_, { agent }) => {
  if (agent !== undefined) agent.afterHeartbeat = () => freeze(agent);
};

function hang(kind: "silent" | "slow"): Fault {
  return (world, { qemu }) => {
    if (qemu === undefined || qemu.hang !== undefined) return;
    qemu.hang = kind;
    qemu.hangSinceMs = world.nowMs;
    qemu.hangUntilMs = world.nowMs + world.random.skewed(50, 6_000);
    if (qemu.hangUntilMs - qemu.hangSinceMs > 600) qemu.hurt ??= `hung (${kind})`;
  };
}

export const FAULTS = {
  "agent crash": (_, host) => host.agent?.die("process"),
  "agent crash between actions": interruptBetweenActions((agent) => agent.die("process")),
  "agent restart": (_, { agent }) => {
    if (agent?.started && !agent.frozen) agent.post(() => agent.restart());
  },
  "agent freeze": (_, host) => freeze(host.agent),
  "agent freeze between actions": interruptBetweenActions((agent) => freeze(agent)),
  "agent freeze after a heartbeat": freezeAfterHeartbeat,
  "qemu crash": (_, host) => host.killQemu("crashed"),
  "qemu hangs": hang("silent"),
  "qemu slow": hang("slow"),
  "host crash": (world, host) => {
    if (host.up) world.powerOff(host, "the host crashed");
  },
  "host replaced": (world, host) => world.replace(host),
  "control link cut": cutPath("control"),
  "client link cut": cutPath("client"),
  "both links cut": (world, host) => {
    cutPath("control")(world, host);
    cutPath("client")(world, host);
  },
  "way to the arbiter cut": (world, host) =>
    cutFor(world, `arbiter:${host.name}`, world.random.skewed(50, 9_000)),
  isolated: (world, { name }) => {
    const ms = world.random.skewed(500, 9_000);
    isolate(world, name, ["control", "client"], ms);
    cutFor(world, `arbiter:${name}`, ms);
  },
  "arbiter outage": (world) => {
    world.arbiter.up = false;
    world.after(world.random.skewed(50, 8_000), () => {
      world.arbiter.up = true;
    });
  },
  "uplink lost": (world, host) => {
    host.uplink = false;
    world.after(world.random.skewed(200, 8_000), () => {
      host.uplink = true;
    });
  },
  "own disk fails": (_, { agent, qemu }) => {
    if (agent === undefined || !agent.started) return;
    if (qemu !== undefined) qemu.hurt ??= "its disk fails";
    agent.tell({ type: "disk_error", disk: "own", reason: "an error of the disk" });
  },
  "replica's disk fails": (world, host) => {
    const { agent } = host;
    if (agent === undefined || !agent.started) return;
    const { qemu } = agent.holds ? world.peerOf(host) : host;
    if (qemu !== undefined) qemu.hurt ??= "its disk fails";
    agent.tell({ type: "disk_error", disk: "replica", reason: "an error of the replica's disk" });
  },
  "fail over wanted": (_, { agent }) => {
    if (agent?.started)
      agent.ask({ type: "fail_over_wanted", reason: "by the administrator" }, () => undefined);
  },
  "unprotect wanted": (world, { agent }) => {
    if (!agent?.started) return;
    const untilMs = world.random.chance(0.5)
      ? agent.host.clockMs + world.random.between(100, 4_000)
      : Infinity;
    agent.ask({ type: "unprotect_wanted", untilMs }, () => undefined);
  },
  "protect wanted": (_, { agent }) => {
    if (agent?.started) agent.ask({ type: "protect_wanted" }, () => undefined);
  },
  shutdown: (world, host) => world.shutDownVm(host),
} satisfies Record<string, Fault>;

type FaultName = keyof typeof FAULTS;

/** Seldom, since little can be learnt of a run after it. */
const RARE: ReadonlySet<FaultName> = new Set(["shutdown", "host replaced"]);
const NAMES = Object.keys(FAULTS) as FaultName[];

export const PHASES: readonly Phase[] = [
  "starting",
  "alone",
  "protecting",
  "resuming",
  "protected",
  "going_alone",
  "handing_over",
  "waiting",
  "incoming",
  "standby",
  "taking_over",
  "stopped",
];

/** Moments of a decision's being carried out, when a fault hurts most. */
export const ACTIONS = [
  ...[
    "read_record",
    "swap_record",
    "probe_qemu",
    "run_alone",
    "protect",
    "resume",
    "begin_checkpoints",
    "pause_checkpoints",
    "catch_up",
    "hand_over",
    "retire",
    "end_succession",
    "fence",
    "promote",
    "ask_peer_to_wait",
    "tell_peer",
  ].map((type) => `action ${type}` as `action ${Action["type"]}`),
  ...["prepare", "entered", "succeed", "resume_wanted", "peer_restarts", "restart_wanted"].map(
    (type) => `answer ${type}` as `answer ${Request["type"]}`,
  ),
];

/** A fault that waits for a phase or an action. */
export interface Trap {
  on: string;
  when?: (host: Host) => boolean;
  fire(host: Host): void;
}

/** Chains of faults that go for a certain rule; by chance alone they would be too seldom. */
const CHAINS: readonly ((world: World, fromMs: number) => void)[] = [
  planReplacement,
  // A primary that hangs for longer than its lease, with an answer waiting for it.
  (world, fromMs) =>
    once(world, fromMs, "phase protected", (host) => {
      world.after(world.random.between(0, 500), () => {
        const { agent } = host;
        if (agent === undefined) return;
        strike(world, "agent freeze after a heartbeat", host);
        agent.afterHeartbeat = () => freeze(agent, world.random.between(1_500, 5_000));
      });
    }),
  // The hosts lose each other; the links are back before or while the takeover is written.
  (world, fromMs) => {
    once(world, fromMs, "phase protected", (host) => {
      world.after(world.random.between(0, 500), () => {
        strike(world, "client link cut", host);
        isolate(world, host.name, ["control", "client"], world.random.between(1_000, 6_000));
      });
    });
    if (world.random.chance(0.4)) return;
    world.traps.push({
      on: "action swap_record",
      when: ({ agent }) => agent?.state.phase === "taking_over",
      fire: () => {
        world.arbiter.late.push({ requestMs: world.random.between(50, 900), answerMs: 0 });
        world.network.heal();
      },
    });
  },
  // A takeover that is written late, by an agent that has ended.
  (world, fromMs) => {
    once(world, fromMs, "phase protected", (host) => {
      world.after(world.random.between(100, 500), () => {
        strike(world, "agent freeze", host);
        freeze(host.agent, world.random.between(1_500, 6_000));
      });
    });
    world.traps.push({
      on: "action swap_record",
      when: ({ agent }) => agent?.state.phase === "taking_over",
      fire: (host) => {
        world.arbiter.late.push({ requestMs: world.random.between(300, 3_000), answerMs: 0 });
        world.after(world.random.between(0, 20), () => strike(world, "agent crash", host));
      },
    });
  },
  // "Replica valid" is written, the answer late, and meanwhile the replica is given up.
  (world) =>
    world.traps.push({
      on: "action swap_record",
      when: ({ agent }) => agent?.state.phase === "protecting",
      fire: (host) => {
        world.arbiter.late.push(
          { requestMs: 0, answerMs: world.random.between(100, 600) },
          { requestMs: world.random.between(200, 900), answerMs: 0 },
        );
        const ms = world.random.between(3, 80);
        world.after(ms / 2, () => isolate(world, host.name, ["control"], 5_000));
        world.after(ms, () => strike(world, "unprotect wanted", host));
      },
    }),
  // "Replica valid" is written late, by an agent that has ended; the one after it begins from the record as
  // it was.
  (world) =>
    world.traps.push({
      on: "action swap_record",
      when: ({ agent }) => agent?.state.phase === "protecting",
      fire: (host) => {
        world.arbiter.late.push({ requestMs: world.random.between(500, 2_500), answerMs: 0 });
        world.after(world.random.between(0, 20), () => strike(world, "agent crash", host));
      },
    }),
  // The one that is handed the VM is lost before it has it.
  (world, fromMs) => {
    once(world, fromMs, "phase protected", (host) => {
      world.after(world.random.between(100, 900), () => strike(world, "fail over wanted", host));
    });
    world.traps.push({
      on: "action retire",
      fire: (host) =>
        world.after(world.random.skewed(0, 30), () =>
          strike(world, world.random.pick(["host crash", "agent crash", "qemu crash"]), world.peerOf(host)),
        ),
    });
  },
];

/** From `fromMs` on, the next time. A pair that is protected by then counts too. */
function once(world: World, fromMs: number, on: string, fire: (host: Host) => void): void {
  world.after(fromMs, () => {
    const host = world.hosts.find(({ agent }) => `phase ${agent?.state.phase}` === on);
    if (host !== undefined) fire(host);
    else world.traps.push({ on, fire });
  });
}

/** Plans the faults of a run between `fromMs` and `untilMs`. */
export function plan(world: World, fromMs: number, untilMs: number): void {
  const { random } = world;
  if (random.chance(0.4)) random.pick(CHAINS)(world, fromMs);
  if (!world.hasArbiter && random.chance(0.5)) {
    once(world, fromMs, "phase protected", (host) => {
      world.after(random.between(100, 900), () => strike(world, "host crash", host));
    });
  }
  const count = 1 + Math.floor(random.chance(0.6) ? random.between(0, 2) : random.between(1, 6));
  for (let i = 0; i < count; i++) {
    const atMs = random.between(fromMs, untilMs);
    const name = pickFault(world);
    if (random.chance(0.35)) {
      world.after(atMs, () => strike(world, name, anyHost(world)));
      // Troubles seldom come alone.
      if (random.chance(0.3)) {
        const second = pickFault(world);
        world.after(atMs + random.skewed(0, 2_500), () => strike(world, second, anyHost(world)));
      }
      continue;
    }
    const on = random.chance(0.5) ? `phase ${random.pick(PHASES)}` : random.pick(ACTIONS);
    const delayMs = random.chance(0.6) ? random.skewed(0, 60) : random.skewed(0, 1_500);
    const onPeer = random.chance(0.35);
    world.after(atMs, () =>
      world.traps.push({
        on,
        fire: (host) =>
          world.after(delayMs, () =>
            strike(world, name, onPeer ? world.peerOf(host) : world.host(host.name)),
          ),
      }),
    );
  }
}

/**
 * A protected pair loses one host to a replacement, and later the replacement too, while the first one is
 * back.
 */
function planReplacement(world: World, fromMs: number): void {
  const { random } = world;
  once(world, fromMs, "phase protected", (host) => {
    const lost = random.chance(0.7) ? world.peerOf(host) : host;
    world.after(random.between(50, 500), () => strike(world, "host replaced", lost));
    if (random.chance(0.6))
      world.after(random.between(6_000, 12_000), () => strike(world, "isolated", world.host(lost.name)));
  });
}

function anyHost(world: World): Host {
  return world.host(world.random.pick(["a", "b"] as const));
}

function pickFault(world: World): FaultName {
  for (;;) {
    const name = world.random.pick(NAMES);
    if (!RARE.has(name) || world.random.chance(0.15)) return name;
  }
}

function strike(world: World, name: FaultName, host: Host): void {
  if (world.healed || world.over) return;
  world.trace("fault", () => `${name} at ${host.id} (${host.agent?.state.phase ?? "no agent"})`);
  world.coverage.count(`fault ${name}`);
  if (host.agent !== undefined) world.coverage.count(`fault in ${host.agent.state.phase}`);
  FAULTS[name](world, host);
}
