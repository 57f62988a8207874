/**
 * One agent process: runs the real decide() and carries out its actions in simulated time. What it does follows
 * src/agent/{vm,agent,control_channel}.ts; the procedures are in procedures.ts.
 */
import { nextDeadlineMs } from "../../src/failover/deadlines.ts";
import { heartbeatGeneration } from "../../src/failover/decide.ts";
import {
  type Action,
  type Event,
  initialState,
  isHolder,
  type Path,
  type State,
} from "../../src/failover/state.ts";
import type { Host } from "./host.ts";
import { Connection } from "./network.ts";
import { type Pause, type Procedure, ProcedureError, type Running, run } from "./procedure.ts";
import * as procedures from "./procedures.ts";
import type { Timer } from "./queue.ts";
import { Violation } from "./violation.ts";
import { contains, type Pair, type Qemu, type VmState } from "./vm.ts";

const REDIAL_MS = 200;
const DIAL_TIMEOUT_MS = 1_000;
const TELL_TIMEOUT_MS = 1_000;

interface About {
  ready: boolean;
  uplink: boolean;
}

interface Beat extends About {
  generation: number | undefined;
}

interface Answer {
  generation: number;
  send(accepted: boolean): void;
}

interface Pending {
  ok: (answer: unknown) => void;
  fail: (error: ProcedureError) => void;
  timer: Timer | undefined;
}

export type RequestType =
  | "prepare_secondary"
  | "enter_secondary"
  | "resume_secondary"
  | "restarting"
  | "back"
  | "succeed"
  | "loaded"
  | "abandon"
  | "replica_lost"
  | "give_up";

export interface RequestBody {
  generation: number;
  reason: string;
  /** With "loaded": which one it is. */
  loads?: number;
}

export class Agent {
  alive = true;
  state: State;
  pair: Pair | undefined;
  /** No checkpoint is begun: the secondary's agent is being restarted. */
  paused = false;
  inCheckpoint = false;
  /** The SVM's events are followed. */
  following = false;
  /** Wakes the checkpoints' loop. */
  wake: (() => void) | undefined;
  peerLoaded: ((loads: number) => void) | undefined;
  lastCheckpoint: { resolve: () => void; fail: (error: ProcedureError) => void } | undefined;
  /** After so many actions more, between two of them, this happens. */
  interrupt: { afterActions: number; run: () => void } | undefined;
  /** Happens once, right after the next heartbeat is sent. */
  afterHeartbeat: (() => void) | undefined;
  /** What has come in: messages, timers, ends of procedures. */
  readonly #work: (() => void)[] = [];
  /** Decisions and their actions: all that follows from one thing that has come in is done before the next. */
  readonly #decisions: (() => void)[] = [];
  #working = false;
  #frozen = false;
  #started = false;
  #takeSent = false;
  /** The generation of the replica that is there. */
  #follows: number | undefined;
  #connection: Connection | undefined;
  readonly #accepted = new Set<Connection>();
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;
  #deadline: Timer | undefined;
  #deadlineMs = Number.POSITIVE_INFINITY;
  #newest: { from: Agent; sentMs: number } | undefined;
  #protection: Running | undefined;
  #checkpoints: { running: Running | undefined } | undefined;
  #prepared: ((resume: () => void, fail: (reason: string) => void) => void) | undefined;
  #entering = false;

  constructor(
    readonly host: Host,
    readonly id: string,
  ) {
    const { world } = host;
    this.state = initialState(world.settingsOf(host), host.clockMs);
    world.after(world.random.between(50, 400), () => this.post(() => this.#adopt()));
  }

  get world() {
    return this.host.world;
  }

  get started(): boolean {
    return this.#started;
  }

  get frozen(): boolean {
    return this.#frozen;
  }

  // --- the process -------------------------------------------------------------------------------------------------------

  /** Work for the process: done at once, or when it runs again. */
  post(work: () => void): void {
    if (!this.alive) return;
    this.#work.push(work);
    this.#drain();
  }

  #drain(): void {
    if (this.#working) return;
    this.#working = true;
    while (this.alive && !this.#frozen) {
      const work = this.#decisions.shift() ?? this.#work.shift();
      if (work === undefined) break;
      work();
    }
    this.#working = false;
  }

  freeze(): void {
    this.#frozen = true;
  }

  thaw(): void {
    this.#frozen = false;
    this.#drain();
  }

  die(what: "process" | "host"): void {
    if (!this.alive) return;
    this.world.trace(this.id, () => (what === "host" ? "its host dies" : "crashes"));
    this.alive = false;
    if (this.host.agent === this) this.host.agent = undefined;
    const { qemu } = this.host;
    // A restarted agent does not know what its replica is worth.
    if (
      qemu !== undefined &&
      qemu.mode !== "running" &&
      qemu.mode !== "incoming" &&
      this.host.rest === undefined
    )
      qemu.hurt ??= "its agent ended";
    if (what === "process") {
      this.#connection?.died(this);
      for (const connection of this.#accepted) connection.died(this);
    }
  }

  #adopt(): void {
    const { host, world } = this;
    const { qemu } = host;
    if (qemu === undefined || !qemu.alive) {
      this.die("process"); // "there is no QMP socket"
      return;
    }
    const { role, leaseUntilMs } = host.kernel;
    const kept =
      qemu.mode === "running" && qemu.pair !== undefined && role === "primary" && leaseUntilMs !== 0;
    const { rest } = host;
    host.rest = undefined;
    const follows = rest !== undefined && qemu.mode === "secondary" && role === "secondary";
    if (!kept && !follows) host.block();
    this.#started = true;
    this.#dial();
    const has = qemu.mode === "running" ? "running" : qemu.mode === "incoming" ? "incoming" : "replica";
    if (follows) this.tell({ type: "started", vm: "following", generation: rest.generation });
    else this.tell({ type: "started", vm: kept ? "protected" : has });
    this.#round();
    world.coverage.count("agents started");
  }

  #round(): void {
    const { host, world } = this;
    procedures.look(this);
    if (host.uplink !== this.state.ownUplink) this.tell({ type: "uplink", up: host.uplink });
    this.tell({ type: "round" });
    this.post(() => {
      this.#sendHeartbeats();
      this.afterHeartbeat?.();
      this.afterHeartbeat = undefined;
    });
    const intervalMs = (world.intervalMs * world.random.between(1, 1.05)) / host.rate;
    world.after(intervalMs, () => this.post(() => this.#round()));
  }

  // --- decisions ---------------------------------------------------------------------------------------------------------

  tell(event: Event): void {
    this.#soon(() => this.#decide(event));
  }

  #soon(decision: () => void): void {
    if (!this.alive) return;
    this.#decisions.push(decision);
    this.#drain();
  }

  #decide(event: Event, answer?: Answer): void {
    const { world } = this;
    const before = this.state;
    const { state, actions } = world.decide(before, event, this.host.clockMs);
    this.state = state;
    if (world.tracing && !isRoutine(event, actions)) {
      world.trace(this.id, () => `${showEvent(event)}${showActions(actions)}`);
    }
    world.decided(this, before, event, state);
    this.#decisions.unshift(
      ...actions.map((action) => () => {
        this.#countDown();
        if (this.alive && !this.#frozen) this.#perform(action, answer);
        else this.#decisions.unshift(() => this.#perform(action, answer));
      }),
    );
    this.#armDeadline();
  }

  #countDown(): void {
    const { interrupt } = this;
    if (interrupt === undefined || interrupt.afterActions-- > 0) return;
    this.interrupt = undefined;
    interrupt.run();
  }

  #armDeadline(): void {
    const atMs = nextDeadlineMs(this.state);
    if (atMs === this.#deadlineMs && this.#deadline?.run !== undefined) return;
    const { world, host } = this;
    world.queue.cancel(this.#deadline);
    this.#deadlineMs = atMs;
    this.#deadline = undefined;
    if (!Number.isFinite(atMs)) return;
    const leftMs = Math.max(1, Math.ceil(atMs - host.clockMs)) / host.rate;
    const timer = world.after(leftMs, () =>
      this.post(() => {
        if (this.#deadline === timer) this.#deadline = undefined;
        this.#decide({ type: "deadline" });
      }),
    );
    this.#deadline = timer;
  }

  #perform(action: Action, answer?: Answer): void {
    const { host, world } = this;
    world.performed(this, action);
    switch (action.type) {
      case "read_record":
      case "swap_record":
        if (action.type === "swap_record" && this.state.phase === "taking_over") this.#takeSent = true;
        world.arbiter.ask(this, action, (result) =>
          this.#decide({ type: "arbiter", call: action.call, result }),
        );
        break;
      case "extend_lease":
        host.extendLease(action.untilMs);
        break;
      case "block":
        host.block();
        this.following = false;
        break;
      case "retire":
        host.kernel.leaseUntilMs = 0;
        world.after(1_000, () => this.post(() => this.state.phase === "stopped" && host.block()));
        break;
      case "answer_heartbeat":
        if (action.accepted && this.#takeSent)
          throw new Violation(5, `${this.id} answers a heartbeat although it may be the holder already`);
        if (action.accepted && answer?.generation !== this.#follows)
          throw new Violation(
            5,
            `${this.id} answers for generation ${answer?.generation}, its replica is of ${this.#follows}`,
          );
        answer?.send(action.accepted);
        break;
      case "run_alone":
        this.#run(
          procedures.runAlone(this),
          () => ({ type: "alone" }),
          () => ({ type: "alone" }),
        );
        break;
      case "probe_qemu":
        this.#run(
          procedures.probe(this),
          () => ({ type: "qemu_answers" }),
          (reason) => ({ type: "qemu_silent", reason }),
        );
        break;
      case "protect":
        this.#protect(action.generation);
        break;
      case "resume":
        this.#resume(action.generation);
        break;
      case "begin_checkpoints":
        this.#beginCheckpoints();
        break;
      case "catch_up":
        this.paused = false;
        this.wake?.();
        break;
      case "end_protection":
        this.endProtection(action.reason);
        break;
      case "hand_over":
        this.#run(
          procedures.handOver(this, action.generation),
          () => ({ type: "handed_over" }),
          (reason) => ({ type: "hand_over_failed", reason }),
        );
        break;
      case "prepare_replica":
        this.#prepare();
        break;
      case "follow":
        this.#entering = false;
        this.#follows = this.state.generation;
        host.kernel.leaseUntilMs = 0;
        host.setRole("secondary");
        this.following = true;
        break;
      case "follow_again":
        this.#follows = this.state.generation;
        this.following = true;
        this.#run(
          procedures.comeBack(this, this.state.generation),
          () => undefined,
          (reason) => ({ type: "follow_failed", reason }),
        );
        break;
      case "fence":
        world.fence(this, (ok, output) => this.tell({ type: "fenced", ok, output }));
        break;
      case "promote":
        this.#checkPromotion();
        this.#run(
          procedures.promote(this),
          () => ({ type: "promoted" }),
          (reason) => ({ type: "promotion_failed", reason }),
        );
        break;
      case "tell_peer": {
        const { what, generation, reason } = action;
        this.ask(
          what,
          { generation, reason },
          TELL_TIMEOUT_MS,
          () => undefined,
          () => undefined,
        );
        break;
      }
    }
  }

  /** Rule 3: what becomes the VM must be a copy that covers all that was seen of it. */
  #checkPromotion(): void {
    const { host, world } = this;
    const { qemu } = host;
    if (qemu === undefined || !qemu.alive) return; // the promotion fails
    if (!qemu.complete || qemu.state === undefined)
      throw new Violation(3, `${this.id} promotes a replica that is not complete (${qemu.mode})`);
    if (!contains(qemu.state, world.outside.last))
      throw new Violation(3, `${this.id} promotes a replica that lacks output ${world.outside.last.id}`);
    world.coverage.count("takeovers");
    this.world.trace(this.id, () => `promotes its replica, state ${qemu.state?.id}`);
  }

  // --- procedures --------------------------------------------------------------------------------------------------------

  #run(
    procedure: Procedure<unknown>,
    done: () => Event | undefined,
    failed: (reason: string) => Event,
  ): void {
    run(
      procedure,
      () => {
        const event = done();
        if (event !== undefined) this.tell(event);
      },
      (error) => this.tell(failed(error.message)),
    );
  }

  #protect(generation: number): void {
    const progress = { entered: false };
    this.#protection = run(
      procedures.protect(this, generation, progress),
      () => this.tell({ type: "primed", generation }),
      (error) => {
        this.endProtection(error.message);
        this.tell({
          type: "protection_failed",
          generation,
          entered: progress.entered,
          reason: error.message,
        });
      },
    );
  }

  #resume(generation: number): void {
    this.#protection = run(
      procedures.resume(this, generation),
      () => {
        this.world.coverage.count("protections that went on");
        this.tell({ type: "resumed", generation });
      },
      (error) => this.tell({ type: "pair_broken", reason: error.message }),
    );
  }

  #keepsReplica(generation: number): boolean {
    return this.state.phase === "standby" && this.state.generation === generation;
  }

  /** When no checkpoint is under way. */
  #whenSettled(action: () => void): void {
    if (!this.inCheckpoint) action();
    else this.world.after(5, () => this.post(() => this.#whenSettled(action)));
  }

  /** What `colo-agent restart` does. */
  restart(): void {
    const { phase, generation, settings } = this.state;
    const { host, world } = this;
    if (phase === "alone") host.extendLease(host.clockMs + settings.restartMs);
    const end = () => this.die("process");
    const rest = () => {
      const { phase: now, claim, goal, givenUp } = this.state;
      const inOrder = now === "standby" && claim === undefined && goal === undefined && !givenUp;
      if (inOrder && host.kernel.role === "secondary") host.rest = { generation };
      end();
    };
    if (phase === "protected" || phase === "standby") {
      this.paused = phase === "protected";
      this.ask("restarting", { generation, reason: "" }, settings.restartMs, rest, end);
    } else world.after(1, () => this.post(end));
  }

  #beginCheckpoints(): void {
    this.paused = false;
    this.inCheckpoint = false;
    const mine: { running: Running | undefined } = { running: undefined };
    this.#checkpoints = mine;
    mine.running = run(
      procedures.checkpoints(this),
      () => undefined,
      (error) => {
        if (this.#checkpoints !== mine) return; // ended by the agent itself
        this.lastCheckpoint?.fail(error);
        this.tell({ type: "pair_broken", reason: error.message });
      },
    );
  }

  endProtection(reason: string): void {
    const protection = this.#protection;
    const checkpoints = this.#checkpoints;
    this.#protection = undefined;
    this.#checkpoints = undefined;
    protection?.abort(reason);
    checkpoints?.running?.abort(reason);
    this.lastCheckpoint?.fail(new ProcedureError("checkpoints were ended"));
    this.lastCheckpoint = undefined;
  }

  #prepare(): void {
    let result: { ok: boolean; reason: string } | undefined;
    let settle: () => void = () => undefined;
    this.#prepared = (resume, fail) => {
      settle = () => {
        if (result?.ok) resume();
        else fail(result?.reason ?? "");
      };
      if (result !== undefined) settle();
    };
    run(
      procedures.prepare(this),
      () => {
        result = { ok: true, reason: "" };
        settle();
      },
      (error) => {
        result = { ok: false, reason: error.message };
        settle();
        this.tell({ type: "prepare_failed", reason: error.message });
      },
    );
  }

  sleep(ms: number): Pause {
    return (resume) => this.world.after(ms, () => this.post(resume));
  }

  /** The comparer has judged one held output. */
  compared(state: VmState, same: boolean): void {
    if (!same) {
      this.wake?.();
      return;
    }
    const { held } = this.host;
    const found = held.find((output) => output.state === state);
    if (found !== undefined) found.verified = true;
    while (held[0]?.verified) this.world.engine.emit(this.host, held.shift()!.state);
  }

  /** Lets out what is held, up to `limit`. */
  release(limit?: VmState): void {
    const { held } = this.host;
    while (held.length > 0 && (limit === undefined || held[0]!.state.depth <= limit.depth)) {
      this.world.engine.emit(this.host, held.shift()!.state);
    }
  }

  qemuClosed(qemu: Qemu): void {
    this.post(() => {
      if (this.#started && this.host.qemu !== qemu)
        this.tell({ type: "qemu_gone", reason: "the socket closed" });
    });
  }

  // --- the peer ----------------------------------------------------------------------------------------------------------

  #dial(): void {
    const { world, host } = this;
    const peer = world.peerOf(host);
    const retry = (ms: number) => world.after(ms, () => this.post(() => this.#dial()));
    const there = world.network.linkUp(host, peer, "control") && world.network.linkUp(peer, host, "control");
    if (!there || !peer.up) {
      retry(DIAL_TIMEOUT_MS + REDIAL_MS);
      return;
    }
    const acceptor = peer.agent;
    if (acceptor === undefined || !acceptor.started) {
      retry(REDIAL_MS);
      return;
    }
    const connection = new Connection(world.network, this, acceptor);
    acceptor.#accepted.add(connection);
    world.after(world.random.skewed(0.3, 5), () =>
      this.post(() => {
        this.#connection = connection;
        if (!connection.open) this.connectionClosed(connection);
      }),
    );
  }

  connectionClosed(connection: Connection): void {
    this.#accepted.delete(connection);
    if (connection !== this.#connection) return;
    this.#connection = undefined;
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { timer, fail } of pending) {
      this.world.queue.cancel(timer);
      fail(new ProcedureError("the connection to the peer agent closed"));
    }
    this.tell({ type: "control_closed" });
    this.world.after(REDIAL_MS, () => this.post(() => this.#dial()));
  }

  ask(
    type: RequestType,
    body: RequestBody,
    timeoutMs: number,
    ok: () => void,
    fail: (error: ProcedureError) => void,
  ): void {
    this.#request(
      (peer, answer) => peer.#serve(type, body, answer),
      (answer) => {
        if (answer === undefined) ok();
        else fail(answer as ProcedureError);
      },
      fail,
      timeoutMs,
    );
  }

  /** As a pause of a procedure. */
  asks(type: RequestType, generation: number, timeoutMs: number): Pause {
    return (resume, fail) => this.ask(type, { generation, reason: "" }, timeoutMs, resume, fail);
  }

  #request(
    serve: (peer: Agent, answer: (value: unknown) => void) => void,
    ok: (answer: unknown) => void,
    fail: (error: ProcedureError) => void,
    timeoutMs: number | undefined,
  ): void {
    const connection = this.#connection;
    if (connection === undefined) {
      this.post(() => fail(new ProcedureError("no connection to the peer agent")));
      return;
    }
    const id = this.#nextId++;
    const expire = () => {
      if (this.#pending.delete(id)) fail(new ProcedureError("the peer agent did not answer in time"));
    };
    const timer = timeoutMs === undefined ? undefined : this.world.after(timeoutMs, () => this.post(expire));
    this.#pending.set(id, { ok, fail, timer });
    const peer = connection.acceptor;
    connection.send(this, () =>
      serve(peer, (value) =>
        connection.send(peer, () => {
          const pending = this.#pending.get(id);
          if (pending === undefined) return;
          this.#pending.delete(id);
          this.world.queue.cancel(pending.timer);
          pending.ok(value);
        }),
      ),
    );
  }

  #serve(
    type: RequestType,
    { generation, reason, loads = 0 }: RequestBody,
    answer: (error?: ProcedureError) => void,
  ): void {
    switch (type) {
      case "prepare_secondary":
        this.#prepared = undefined;
        this.tell({ type: "prepare", generation });
        this.#soon(() => {
          const prepared = this.#prepared;
          this.#prepared = undefined;
          if (prepared === undefined) answer(new ProcedureError("no replica to offer"));
          else prepared(answer, (why) => answer(new ProcedureError(why)));
        });
        return;
      case "enter_secondary":
        this.#entering = true;
        this.tell({ type: "entered", generation });
        this.#soon(() => {
          answer(this.#entering ? new ProcedureError("expects no such primary") : undefined);
          this.#entering = false;
        });
        return;
      case "succeed":
        if (!this.#keepsReplica(generation)) {
          answer(new ProcedureError("keeps no such replica"));
          return;
        }
        this.host.setRole("successor");
        break;
      case "resume_secondary":
        if (!this.#keepsReplica(generation)) {
          answer(new ProcedureError("keeps no such replica"));
          return;
        }
        this.tell({ type: "peer_is_back", generation });
        if (this.host.kernel.role === "successor") {
          answer(new ProcedureError("the VM was being handed over"));
          return;
        }
        break;
      case "restarting": {
        const { phase, generation: own } = this.state;
        if ((phase !== "standby" && phase !== "protected") || own !== generation) {
          answer(new ProcedureError("it is not protected in this generation"));
          return;
        }
        this.paused = phase === "protected";
        this.#whenSettled(() => {
          this.tell({ type: "peer_restarts", generation });
          answer();
        });
        return;
      }
      case "back":
        if (!this.holds || this.state.generation !== generation) {
          answer(new ProcedureError("needs no such replica"));
          return;
        }
        this.world.coverage.count("replicas that were followed again");
        this.tell({ type: "peer_is_back", generation });
        break;
      case "loaded":
        this.peerLoaded?.(loads);
        break;
      case "abandon":
        this.tell({ type: "abandoned", generation, reason });
        break;
      case "replica_lost":
        this.tell({ type: "replica_lost", generation, reason });
        break;
      case "give_up":
        this.tell({ type: "peer_gave_up", generation, reason });
        break;
    }
    answer();
  }

  // --- heartbeats --------------------------------------------------------------------------------------------------------

  #about(): Beat {
    const { state } = this;
    return {
      generation: heartbeatGeneration(state),
      ready: state.phase === "waiting",
      uplink: state.ownUplink,
    };
  }

  #sendHeartbeats(): void {
    const { world, host } = this;
    const sentMs = host.clockMs;
    const beat = this.#about();
    world.network.datagram(this, (to) => to.#datagramCame(this, sentMs, beat));
    if (this.#connection === undefined) return;
    const { timeoutMs } = this.state.settings;
    this.#request(
      (peer, answer) => peer.#answerHeartbeat("control", beat, answer),
      (answer) => {
        if (host.clockMs - sentMs <= timeoutMs)
          this.#answered("control", sentMs, beat, answer as About & { accepted?: boolean });
      },
      () => undefined,
      undefined,
    );
  }

  #datagramCame(from: Agent, sentMs: number, beat: Beat): void {
    if (!this.#started) return;
    if (this.#newest?.from === from && sentMs <= this.#newest.sentMs) return;
    this.#newest = { from, sentMs };
    this.#answerHeartbeat("client", beat, (answer) =>
      this.world.network.datagram(this, (to) => {
        if (to === from) to.#answered("client", sentMs, beat, answer);
      }),
    );
  }

  #answerHeartbeat(path: Path, beat: Beat, answer: (about: About & { accepted?: boolean }) => void): void {
    const { generation, ready, uplink } = beat;
    this.tell({ type: "peer_seen", path, ready, uplink });
    if (generation === undefined) {
      this.#soon(() => answer(this.#about()));
      return;
    }
    this.#soon(() =>
      this.#decide(
        { type: "heartbeat", path, generation },
        { generation, send: (accepted) => answer({ ...this.#about(), accepted }) },
      ),
    );
  }

  #answered(path: Path, sentMs: number, asked: Beat, about: About & { accepted?: boolean }): void {
    this.tell({ type: "peer_seen", path, ready: about.ready, uplink: about.uplink });
    if (asked.generation === undefined) return;
    const accepted = about.accepted === true;
    this.tell({ type: "heartbeat_answered", path, sentMs, generation: asked.generation, accepted });
  }

  get holds(): boolean {
    return isHolder(this.state);
  }
}

/** What happens all the time and says nothing: it would crowd a trace. */
function isRoutine(event: Event, actions: readonly Action[]): boolean {
  switch (event.type) {
    case "peer_seen":
      return actions.length === 0;
    case "heartbeat":
      return actions.length === 1;
    case "round":
    case "deadline":
    case "heartbeat_answered":
      return actions.every((action) => action.type === "extend_lease");
    default:
      return false;
  }
}

function showEvent(event: Event): string {
  if (event.type === "arbiter") return `arbiter ${event.result.kind} (call ${event.call})`;
  const { type, ...rest } = event;
  const details = Object.entries(rest).map(([key, value]) => `${key} ${format(value)}`);
  return [type, ...details].join(", ");
}

function showActions(actions: readonly Action[]): string {
  const shown = actions.map(({ type, ...rest }) => {
    const details = Object.values(rest).filter((value) => typeof value !== "object");
    return details.length === 0 ? type : `${type}(${details.map(format).join(", ")})`;
  });
  return shown.length === 0 ? "" : ` -> ${shown.join(", ")}`;
}

function format(value: unknown): string {
  return typeof value === "number" ? String(Math.round(value * 10) / 10) : String(value);
}
