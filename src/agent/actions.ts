/**
 * Carries out what the decisions ask for. Each action is complete in itself; the ends of procedures are
 * events.
 */
import type { Arbiter } from "../arbiter/index.ts";
import type { Action } from "../failover/actions.ts";
import type { ArbiterResult, Event } from "../failover/events.ts";
import { quickenAcks } from "./delayed_ack.ts";
import type { Fence } from "./fence.ts";
import type { ReplicaAtRest } from "./instance_memory.ts";
import type { Machine } from "./machine.ts";
import { TELL_TIMEOUT_MS } from "./peer_api.ts";
import type { Primary, ProtectionError } from "./primary.ts";
import type { Secondary } from "./secondary.ts";

export interface ActionParts {
  machine: Machine;
  primary: Primary;
  secondary: Secondary;
  arbiter: Arbiter;
  fence: Fence;
  /** Names of the two agents, for the fence command. */
  agents: { name: string; peer: string };
  /** The peer's address on the replication link. */
  peerHost: string;
  /** How long the peer may take to agree to a restart, in ms. */
  restartMs: number;
  /** The replica that this host's agent left in good order before it was restarted. */
  rest: ReplicaAtRest | undefined;
  tell(event: Event): void;
}

type Of<T extends Action["type"]> = Extract<Action, { type: T }>;

export class Actions {
  /** Procedures under way, to be waited for before what they use is closed. */
  readonly #procedures = new Set<Promise<unknown>>();

  constructor(private readonly parts: ActionParts) {}

  /** Resolves when no procedure is under way. */
  async ended(): Promise<void> {
    await Promise.allSettled([...this.#procedures, this.parts.primary.ended]);
  }

  perform(action: Exclude<Action, { type: "answer" }>): void {
    const { machine, primary, secondary, arbiter } = this.parts;
    const vm = machine.config.name;
    switch (action.type) {
      case "read_record":
        this.#askArbiter(action.call, async () => ({ kind: "record", record: await arbiter.read(vm) }));
        break;
      case "swap_record":
        this.#askArbiter(action.call, async () => {
          const result = await arbiter.compareAndSwap(vm, action.expectedRevision, action.record);
          return result.swapped
            ? { kind: "swapped", record: result.record }
            : { kind: "conflict", record: result.current };
        });
        break;
      case "extend_lease":
        machine.proxy.extendLease(action.untilMs);
        break;
      case "block":
        machine.proxy.block();
        secondary.end();
        machine.divergences.ended(`not released: ${action.reason}`);
        break;
      case "retire":
        machine.proxy.dropLease();
        machine.divergences.ended("handed over");
        break;
      case "run_alone":
        this.#run(primary.runAlone(), { type: "alone" }, () => ({ type: "alone" }));
        break;
      case "probe_qemu":
        this.#run(primary.probe(), { type: "qemu_answers" }, (reason) => ({
          type: "qemu_silent",
          reason: `QEMU does not answer: ${reason}`,
        }));
        break;
      case "protect":
        this.#protect(action.generation);
        break;
      case "resume":
        this.#run(
          primary.resume(action.generation),
          { type: "resumed", generation: action.generation },
          (reason) => ({ type: "pair_broken", reason: `the protection could not continue: ${reason}` }),
        );
        break;
      case "begin_checkpoints":
        primary.beginCheckpoints();
        break;
      case "pause_checkpoints":
        this.#pauseCheckpoints(action);
        break;
      case "catch_up":
        primary.catchUp();
        break;
      case "end_protection":
        primary.endProtection(action.reason);
        break;
      case "hand_over":
        this.#run(primary.handOver(action.generation), { type: "handed_over" }, (reason) => ({
          type: "hand_over_failed",
          reason,
        }));
        break;
      case "end_succession":
        machine.proxy.comparison?.endSuccession();
        break;
      case "follow_again":
        this.#followAgain(action.generation);
        break;
      case "promote":
        machine.log.warn("this host takes over the VM", { reason: action.reason });
        this.#run(
          secondary.promote().then(() => primary.continueFrom(secondary.epoch)),
          { type: "promoted" },
          (reason) => ({ type: "promotion_failed", reason }),
        );
        break;
      case "fence":
        this.#fence(action.term);
        break;
      case "ask_peer_to_wait":
        this.#askPeerToWait(action);
        break;
      case "tell_peer":
        this.#tellPeer(action);
        break;
    }
  }

  /** Remembers a procedure until it ends. */
  remember<T>(procedure: Promise<T>): Promise<T> {
    this.#procedures.add(procedure);
    const forget = () => this.#procedures.delete(procedure);
    procedure.then(forget, forget);
    return procedure;
  }

  /** A procedure whose end is an event. */
  #run(procedure: Promise<unknown>, done: Event, failed: (reason: string) => Event): void {
    const { machine, tell } = this.parts;
    this.remember(procedure).then(
      () => tell(done),
      (error: Error) => {
        machine.log.warn("a procedure failed", { error });
        tell(failed(error.message));
      },
    );
  }

  #protect(generation: number): void {
    const { machine, primary, peerHost, tell } = this.parts;
    quickenAcks(peerHost, machine.log);
    this.remember(primary.protect(generation)).then(
      () => tell({ type: "primed", generation }),
      (error: ProtectionError) => {
        machine.log.warn("could not protect the VM", { reason: error.message });
        primary.endProtection(error.message);
        const { entered, message } = error;
        tell({ type: "protection_failed", generation, entered, reason: message });
      },
    );
  }

  #pauseCheckpoints({ request, whose, generation }: Of<"pause_checkpoints">): void {
    const { primary, tell } = this.parts;
    void primary
      .pauseCheckpoints()
      .then(() => tell({ type: "checkpoints_paused", request, whose, generation }));
  }

  /** The primary's agent answers when a checkpoint that is under way is over. */
  #askPeerToWait({ request, generation }: Of<"ask_peer_to_wait">): void {
    const { machine, secondary, restartMs, tell } = this.parts;
    const answered = (refusal: string | undefined) =>
      tell({ type: "peer_waits", request, refusal, atRest: secondary.atRest !== undefined });
    machine.peer.ask("restarting", { vm: machine.config.name, generation }, restartMs).then(
      () => answered(undefined),
      (error: Error) => {
        machine.log.info("the peer does not know of the restart", { error });
        answered(error.message);
      },
    );
  }

  #followAgain(generation: number): void {
    const { secondary, rest, tell } = this.parts;
    const failed = (why: string) =>
      tell({ type: "follow_failed", reason: `the replica could not be followed again: ${why}` });
    if (rest === undefined) failed("this host does not know what was left of it");
    else
      this.remember(secondary.followAgain(generation, rest)).catch((error: Error) => failed(error.message));
  }

  /** Turns the peer off. */
  #fence(term: number): void {
    const { machine, fence, agents, tell } = this.parts;
    const facts = { agent: agents.name, peer: agents.peer, vm: machine.config.name, term };
    void fence.run(facts).then(({ ok, output, reason }) => {
      machine.log.warn("fence command", { ok, reason, output });
      tell({ type: "fenced", ok, output: reason ?? output });
    });
  }

  #tellPeer({ what, generation, reason }: Of<"tell_peer">): void {
    const { peer, config, log } = this.parts.machine;
    const vm = config.name;
    const told =
      what === "back"
        ? peer.ask(what, { vm, generation }, TELL_TIMEOUT_MS)
        : peer.ask(what, { vm, generation, reason }, TELL_TIMEOUT_MS);
    told.catch((error) => log.warn("could not notify the peer", { what, error }));
  }

  #askArbiter(call: number, ask: () => Promise<ArbiterResult>): void {
    const { machine, tell } = this.parts;
    ask().then(
      (result) => tell({ type: "arbiter", call, result }),
      (error: Error) => {
        machine.log.warn("the arbiter does not answer; the agent tries again", { error });
        tell({ type: "arbiter", call, result: { kind: "unreachable", reason: error.message } });
      },
    );
  }
}
