/**
 * One agent process: the product's driver, decisions and heartbeats with a simulated clock, network and QEMU.
 * What it still has of its own are the procedures (procedures.ts, after src/agent/{primary,secondary}.ts) and
 * what starts them.
 */
import { Heartbeats, type HeartbeatVm } from "../../src/agent/heartbeats.ts";
import { type HeartbeatAnswer, type HeartbeatRequest, TELL_TIMEOUT_MS } from "../../src/agent/peer_api.ts";
import type { Action } from "../../src/failover/actions.ts";
import { nextDeadlineMs } from "../../src/failover/deadlines.ts";
import { heartbeatGeneration } from "../../src/failover/decide.ts";
import type { Answered, Driver } from "../../src/failover/driver.ts";
import type { Event, Request } from "../../src/failover/events.ts";
import { isHolder, type Path, type State } from "../../src/failover/state.ts";
import type { Host } from "./host.ts";
import type { Connection } from "./network.ts";
import { PeerLink } from "./peer_link.ts";
import { type RequestBody, type RequestType, serve } from "./peer_requests.ts";
import { Primary } from "./primary.ts";
import { type Pause, type Procedure, type ProcedureError, run } from "./procedure.ts";
import * as procedures from "./procedures.ts";
import { Process } from "./process.ts";
import { isRoutine, showActions, showEvent } from "./trace.ts";
import { Violation } from "./violation.ts";
import { contains, type Pair, type Qemu } from "./vm.ts";

/** There is one. */
const VM = "vm";
/** A deadline that is noticed later than this, by an agent that runs, was not armed. */
const DEADLINE_SLACK_MS = 20;
/** After the answer to the administrator. */
const RESTART_END_MS = 60;

export class Agent extends Process implements HeartbeatVm {
  pair: Pair | undefined;
  /** No checkpoint is begun: an agent of the pair is being restarted. */
  paused = false;
  inCheckpoint = false;
  /** The SVM's events are followed. */
  following = false;
  /** Wakes the checkpoints' loop. */
  wake: (() => void) | undefined;
  peerLoaded: ((loads: number) => void) | undefined;
  lastCheckpoint: { resolve: () => void; fail: (error: ProcedureError) => void } | undefined;
  /** Happens once, right after the next heartbeat is sent. */
  afterHeartbeat: (() => void) | undefined;
  readonly link: PeerLink;
  readonly #driver: Driver;
  readonly #heartbeats = new Heartbeats(() => [[VM, this] as const]);
  /** When the last decision was taken: it may have made something due that its moment lies before. */
  #decidedMs = 0;
  #started = false;
  #takeSent = false;
  /** The generation of the replica that is there. */
  #follows: number | undefined;
  #newest: { from: Agent; sentMs: number } | undefined;
  readonly #primary = new Primary(this);

  constructor(
    host: Host,
    readonly id: string,
  ) {
    super(host);
    const { world } = host;
    this.link = new PeerLink(this, () => this.tell({ type: "control_closed" }));
    this.#driver = new world.rules.driver(world.settingsOf(host), {
      now: () => host.clockMs,
      setTimer: (ms, call) => this.setTimer(ms, call),
      perform: (action) => this.#perform(action),
      decided: (before, event, after, actions) => this.#decided(before, event, after, actions),
      phaseChanged: () => undefined,
      mayContinue: () => this.mayContinue(),
      decide: world.rules.decide,
    });
    world.after(world.random.between(50, 400), () => this.post(() => this.#adopt()));
  }

  get state(): Readonly<State> {
    return this.#driver.state;
  }

  get started(): boolean {
    return this.#started;
  }

  get holds(): boolean {
    return isHolder(this.state);
  }

  // --- the process ---

  protected proceed(): void {
    this.#driver.proceed();
  }

  die(what: "process" | "host"): void {
    if (!this.alive) return;
    this.world.trace(this.id, () => (what === "host" ? "its host dies" : "ends"));
    this.alive = false;
    if (this.host.agent === this) this.host.agent = undefined;
    const { qemu, rest } = this.host;
    // A restarted agent does not know what its replica is worth.
    if (qemu !== undefined && qemu.mode !== "running" && qemu.mode !== "incoming" && rest === undefined)
      qemu.hurt ??= "its agent ended";
    if (what === "process") this.link.died();
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
    this.link.dial();
    const has = qemu.mode === "running" ? "running" : qemu.mode === "incoming" ? "incoming" : "replica";
    if (follows) this.tell({ type: "started", vm: "following", generation: rest.generation });
    else this.tell({ type: "started", vm: kept ? "protected" : has });
    this.#round();
    world.coverage.count("agents started");
  }

  #round(): void {
    const { host, world } = this;
    this.#checkDeadline();
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

  /** Rule 8. A deadline that only the next round notices was not armed. */
  #checkDeadline(): void {
    const dueMs = Math.max(nextDeadlineMs(this.state), this.thawedMs, this.#decidedMs);
    const lateMs = this.host.clockMs - dueMs;
    if (lateMs > DEADLINE_SLACK_MS)
      throw new Violation(8, `${this.id} is ${this.state.phase}, ${lateMs.toFixed(1)} ms after a deadline`);
  }

  // --- decisions ---

  tell(event: Event): void {
    if (this.alive) this.#driver.tell(event);
  }

  ask(request: Request, answered: Answered): void {
    if (!this.alive) return;
    this.#driver.ask(request, (refusal) => {
      if (refusal === undefined) this.world.performed(this, `answer ${request.type}`);
      answered(refusal);
    });
  }

  #decided(before: State, event: Event, after: State, actions: readonly Action[]): void {
    const { world } = this;
    this.#decidedMs = this.host.clockMs;
    if (world.tracing && !isRoutine(event, actions))
      world.trace(this.id, () => `${showEvent(event)}${showActions(actions)}`);
    if (after.reason?.startsWith("invariant ")) throw new Violation(7, `${this.id}: ${after.reason}`);
    world.decided(this, before, event, after);
  }

  #perform(action: Exclude<Action, { type: "answer" }>): void {
    const { host, world } = this;
    world.performed(this, `action ${action.type}`);
    switch (action.type) {
      case "read_record":
      case "swap_record":
        if (action.type === "swap_record" && this.state.phase === "taking_over") this.#takeSent = true;
        world.arbiter.ask(this, action, (result) =>
          this.tell({ type: "arbiter", call: action.call, result }),
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
        break;
      case "run_alone":
        this.#run(procedures.runAlone(this), { type: "alone" }, () => ({ type: "alone" }));
        break;
      case "probe_qemu":
        this.#run(procedures.probe(this), { type: "qemu_answers" }, (reason) => ({
          type: "qemu_silent",
          reason,
        }));
        break;
      case "protect":
        this.#primary.protect(action.generation);
        break;
      case "resume":
        this.#primary.resume(action.generation);
        break;
      case "begin_checkpoints":
        this.#primary.beginCheckpoints();
        break;
      case "pause_checkpoints": {
        const { request, whose, generation } = action;
        this.paused = true;
        this.#primary.whenSettled(() =>
          this.tell({ type: "checkpoints_paused", request, whose, generation }),
        );
        break;
      }
      case "catch_up":
        this.paused = false;
        this.wake?.();
        break;
      case "end_protection":
        this.#primary.endProtection(action.reason);
        break;
      case "hand_over":
        this.#run(procedures.handOver(this, action.generation), { type: "handed_over" }, (reason) => ({
          type: "hand_over_failed",
          reason,
        }));
        break;
      case "end_succession":
        if (host.kernel.role === "successor") procedures.passAlone(this);
        break;
      case "follow_again":
        this.#follows = action.generation;
        this.following = true;
        this.#run(procedures.comeBack(this, action.generation), undefined, (reason) => ({
          type: "follow_failed",
          reason,
        }));
        break;
      case "fence":
        world.fence(this, (ok, output) => this.tell({ type: "fenced", ok, output }));
        break;
      case "promote":
        this.#checkPromotion();
        this.#run(procedures.promote(this), { type: "promoted" }, (reason) => ({
          type: "promotion_failed",
          reason,
        }));
        break;
      case "ask_peer_to_wait":
        this.#askPeerToWait(action.request, action.generation);
        break;
      case "tell_peer": {
        const { what, generation, reason } = action;
        this.request(what, { generation, reason }, TELL_TIMEOUT_MS);
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

  // --- procedures ---

  #run(procedure: Procedure<unknown>, done: Event | undefined, failed: (reason: string) => Event): void {
    run(
      procedure,
      () => {
        if (done !== undefined) this.tell(done);
      },
      (error) => this.tell(failed(error.message)),
    );
  }

  #askPeerToWait(request: number, generation: number): void {
    const answered = (refusal: string | undefined) =>
      this.tell({ type: "peer_waits", request, refusal, atRest: this.#atRest });
    const { restartMs } = this.state.settings;
    this.request(
      "restarting",
      { generation, reason: "" },
      restartMs,
      () => answered(undefined),
      ({ message }) => answered(message),
    );
  }

  /** Another agent could follow from here. */
  get #atRest(): boolean {
    return this.following && this.host.kernel.role === "secondary";
  }

  /** `colo-agent restart`. */
  restart(): void {
    const { world, host } = this;
    const end = () =>
      world.after(world.random.between(0, RESTART_END_MS), () => this.post(() => this.die("process")));
    this.ask({ type: "restart_wanted" }, (refusal) => {
      if (refusal !== undefined) {
        this.tell({ type: "restart_cancelled" });
        // The administrator may end the agent all the same.
        if (world.random.chance(0.5)) end();
        return;
      }
      world.coverage.count("restarts that were agreed");
      const { phase, generation } = this.state;
      if (phase === "standby" && this.#atRest) host.rest = { generation };
      end();
    });
  }

  sleep(ms: number): Pause {
    return (resume) => this.world.after(ms, () => this.post(resume));
  }

  /** The switch-over: from here on this host has a replica of `generation`. */
  follow(generation: number): void {
    const { host } = this;
    this.#follows = generation;
    host.kernel.leaseUntilMs = 0;
    host.setRole("secondary");
    this.following = true;
  }

  qemuClosed(qemu: Qemu): void {
    this.post(() => {
      if (this.#started && this.host.qemu !== qemu)
        this.tell({ type: "qemu_gone", reason: "the socket closed" });
    });
  }

  // --- the peer ---

  connectionClosed(connection: Connection): void {
    this.link.closed(connection);
  }

  request(
    type: RequestType,
    body: RequestBody,
    timeoutMs: number,
    ok: () => void = () => undefined,
    fail: (error: ProcedureError) => void = () => undefined,
  ): void {
    this.link.request(
      (peer, answer) => serve(peer, type, body, answer),
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
    return (resume, fail) => this.request(type, { generation, reason: "" }, timeoutMs, resume, fail);
  }

  // --- heartbeats ---

  get heartbeat(): HeartbeatVm["heartbeat"] {
    const { state } = this;
    return {
      generation: heartbeatGeneration(state),
      ready: state.phase === "waiting",
      uplink: state.ownUplink,
    };
  }

  peerSeen(path: Path, { ready, uplink }: { ready: boolean; uplink: boolean }): void {
    this.tell({ type: "peer_seen", path, ready, uplink });
  }

  heartbeatCame(path: Path, generation: number, answer: (accepted: boolean) => void): void {
    this.ask({ type: "heartbeat", path, generation }, (refusal) => {
      const accepted = refusal === undefined;
      if (accepted && this.#takeSent)
        throw new Violation(5, `${this.id} answers a heartbeat although it may be the holder already`);
      if (accepted && generation !== this.#follows)
        throw new Violation(
          5,
          `${this.id} answers for generation ${generation}, its replica is of ${this.#follows}`,
        );
      answer(accepted);
    });
  }

  heartbeatAnswered(path: Path, sentMs: number, generation: number, accepted: boolean): void {
    this.tell({ type: "heartbeat_answered", path, sentMs, generation, accepted });
  }

  #sendHeartbeats(): void {
    const { world, host } = this;
    const sentMs = host.clockMs;
    const asked = this.#heartbeats.request();
    world.network.datagram(this, (to) => to.#datagramCame(this, sentMs, asked));
    if (!this.link.connected) return;
    const { timeoutMs } = this.state.settings;
    this.link.request(
      (peer, answer) => peer.#heartbeats.came("control", asked, answer),
      (answer) => {
        if (host.clockMs - sentMs <= timeoutMs)
          this.#heartbeats.answered("control", sentMs, asked, answer as HeartbeatAnswer);
      },
      () => undefined,
      undefined,
    );
  }

  #datagramCame(from: Agent, sentMs: number, asked: HeartbeatRequest): void {
    if (!this.#started) return;
    if (this.#newest?.from === from && sentMs <= this.#newest.sentMs) return;
    this.#newest = { from, sentMs };
    this.#heartbeats.came("client", asked, (answer) =>
      this.world.network.datagram(this, (to) => {
        if (to === from) to.#heartbeats.answered("client", sentMs, asked, answer);
      }),
    );
  }
}
