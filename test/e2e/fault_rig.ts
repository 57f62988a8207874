/**
 * One lab over many faults: a protected pair under traffic, a fault, the VM reachable again, the pair
 * protected again, roles as they fell. After each cycle it is judged whether a client could have noticed
 * anything but a pause, and who sent when.
 */
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import type { VmStatus } from "../../src/api/status.ts";
import { LabFaults, otherHost } from "../../src/lab/faults.ts";
import { Lab } from "../../src/lab/lab.ts";
import { GUEST_IPV4, GUEST_MAC, type HostLetter, inNamespace, run } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { Random } from "../random.ts";
import { lasting, quiet, until } from "../until.ts";
import type { FaultCase, FaultScene } from "./fault_cases.ts";
import { NICENESS } from "./lab_under_test.ts";
import { judgeSenders, mergeCaptures } from "./single_sender.ts";
import { SwitchCapture } from "./switch_capture.ts";

const LAB = "test-faults";
const OPTIONS = { memoryMib: 256, vmConfig: "checkpoint = { period_ms = 2000 }" };
const FORGED_IPV4 = "198.18.0.98";
const NOBODYS_IPV4 = "198.18.0.99";
const CYCLES_PER_LAB = 30;
/** The lab's disk has 16 384 blocks. */
const BLOCKS_PER_LAB = 13_000;
/** Of the blocks that earlier cycles have seen on the disk, so many are read again. */
const OLD_BLOCKS_READ = 200;

const BYTES_PER_SECOND = 500_000;
/** As much again after the fault means that the connection goes on: a fifth of a second's worth. */
const FLOW_BYTES = 100_000;

const RECOVERY_TIMEOUT_MS = 30_000;
const PROTECT_TIMEOUT_MS = 60_000;
const EVENT_TIMEOUT_MS = 15_000;
const POLL_MS = 50;
/**
 * Longer than what an agent that does not answer is waited for, so that nothing older than the fault is
 * looked at.
 */
const SETTLE_MS = 2_200;
/** What comes back from a fault gets so long to do harm before it is replaced. */
const HARM_MS = 700;

export interface CycleFigures {
  cycle: number;
  fault: string;
  /**
   * Longest time without a byte for a client that sends all the time, from just before the fault until the VM
   * was reachable again.
   */
  gapMs: number;
  takeovers: number;
  /**
   * From the return of the lost host until the VM was protected again; undefined if it was never unprotected.
   */
  protectMs: number | undefined;
  cycleMs: number;
}

/** What both agents say, each asked on its own: one that hangs does not delay the news of the other. */
class PairWatch {
  readonly latest: Record<HostLetter, VmStatus | undefined> = { a: undefined, b: undefined };
  #ended = false;

  constructor(private readonly lab: Lab) {
    for (const letter of ["a", "b"] as const) void this.#follow(letter);
  }

  async #follow(letter: HostLetter): Promise<void> {
    while (!this.#ended) {
      this.latest[letter] = await this.lab.agentStatus(letter);
      await Bun.sleep(POLL_MS);
    }
  }

  async until(what: string, condition: () => boolean, timeoutMs: number): Promise<void> {
    await until(what, condition, { limitMs: timeoutMs, pollMs: POLL_MS / 2, seen: () => this.said() });
  }

  said(): string {
    const { a, b } = this.latest;
    return `the agents say ${JSON.stringify({ a: a && [a.phase, a.reason], b: b && [b.phase, b.reason] })}`;
  }

  /** The host that has the VM in its charge, as far as its agent says. */
  holders(): HostLetter[] {
    const phases = new Set(["alone", "protecting", "protected"]);
    return (["a", "b"] as const).filter((letter) => phases.has(this.latest[letter]?.phase ?? ""));
  }

  /** The primary of a protected pair. */
  protectedOn(): HostLetter | undefined {
    return (["a", "b"] as const).find(
      (letter) =>
        this.latest[letter]?.phase === "protected" && this.latest[otherHost(letter)]?.phase === "standby",
    );
  }

  [Symbol.dispose](): void {
    this.#ended = true;
  }
}

/** Clients that live as long as the lab does: not one of their connections may break. */
class Clients {
  readonly connection: LabTraffic;
  readonly short: LabTraffic;
  readonly random: LabTraffic;
  readonly disk: LabTraffic;
  #blocksSeen = 0;

  constructor(private readonly lab: Lab) {
    const host = GUEST_IPV4;
    this.connection = new LabTraffic(lab, "duplex", { host, bytesPerSecond: BYTES_PER_SECOND });
    this.short = new LabTraffic(lab, "connect", { host, pauseMs: 100 });
    this.random = new LabTraffic(lab, "random", { host, pauseMs: 150 });
    this.disk = new LabTraffic(lab, "disk", { host, pauseMs: 40 });
  }

  get all(): readonly LabTraffic[] {
    return [this.connection, this.short, this.random, this.disk];
  }

  get blocks(): number {
    return this.disk.last?.answers ?? 0;
  }

  /** Throws if one of them has found anything wrong, or lost its connection. */
  check(): void {
    for (const { last } of this.all)
      if (last?.type === "error") throw new Error(`${last.kind}: ${last.message}`);
  }

  /** Waits until each of them has got something new. */
  async flow(timeoutMs: number): Promise<void> {
    const { connection, short, random, disk } = this;
    const received = connection.last?.received ?? 0;
    const goOn = (one: LabTraffic) => {
      const before = one.last?.answers ?? 0;
      return one.until("answers go on", ({ answers }) => answers > before, timeoutMs);
    };
    await Promise.all([
      connection.until("the connection continues", (r) => r.received >= received + FLOW_BYTES, timeoutMs),
      ...[short, random, disk].map(goOn),
    ]);
  }

  /**
   * Reads back the blocks that were acknowledged since the last time, and some of the others. Throws at the
   * first wrong one.
   */
  async readBlocks(random: Random): Promise<void> {
    const acknowledged = this.blocks;
    const old = Array.from({ length: Math.min(OLD_BLOCKS_READ, this.#blocksSeen) }, () =>
      random.integer(0, this.#blocksSeen - 1),
    );
    const fresh = Array.from({ length: acknowledged - this.#blocksSeen }, (_, i) => this.#blocksSeen + i);
    using reader = new LabTraffic(this.lab, "blocks", { host: GUEST_IPV4, blocks: [...fresh, ...old] });
    const report = await reader.ended();
    if (report.answers !== fresh.length + old.length) throw new Error("not all blocks were read");
    this.#blocksSeen = acknowledged;
  }

  /** Orderly end: each byte that was sent has come back. */
  async finish(): Promise<void> {
    const { sent, received } = await this.connection.finish();
    if (sent !== received) throw new Error(`${sent} bytes were sent, ${received} came back`);
    await Promise.all([this.short.finish(), this.random.finish(), this.disk.finish()]);
  }

  [Symbol.dispose](): void {
    for (const one of this.all) one.kill();
  }
}

interface Pair {
  lab: Lab;
  faults: LabFaults;
  clients: Clients;
  cycles: number;
}

export class FaultRig {
  readonly figures: CycleFigures[] = [];
  #pair: Pair | undefined;

  /** `directory`: for captures; those of cycles in which something was wrong are left there. */
  constructor(
    private readonly seed: number,
    private readonly directory: string,
  ) {
    mkdirSync(directory, { recursive: true });
  }

  /** Throws at anything that is wrong; the next cycle then begins with a lab of its own. */
  async cycle(number: number, fault: FaultCase): Promise<CycleFigures> {
    // Each cycle's chances depend on the seed and its number alone, so that one can be repeated.
    const random = new Random(this.seed * 100_003 + number);
    const pair = await this.#protectedPair();
    const { lab } = pair;
    const logs = (["a", "b"] as const).map((letter) => new LogTail(join(lab.directory, letter, "agent.log")));
    const capture = await SwitchCapture.start(lab, this.directory, `cycle-${number}`);
    try {
      const figures = await this.#run(pair, number, fault, random, capture);
      for (const path of Object.values(capture.paths)) rmSync(path);
      this.figures.push(figures);
      pair.cycles++;
      return figures;
    } catch (error) {
      const tails = logs.map((log) => `--- ${log.path}\n${log.read()}`);
      this.#keepLogs(lab, number);
      await this.#end(false);
      throw new Error(
        `cycle ${number} (${fault.name}), COLO_FAULT_SEED=${this.seed}: ${(error as Error).message}\n` +
          `captures and whole logs: ${this.directory}/cycle-${number}-*\n${tails.join("\n")}`,
        { cause: error },
      );
    } finally {
      capture[Symbol.dispose]();
    }
  }

  /**
   * What the judge says when the host that does not hold the VM sends a frame with its MAC: proof that the
   * capture sees it.
   */
  async forgery(): Promise<string[]> {
    const { lab, clients } = await this.#protectedPair();
    using watch = new PairWatch(lab);
    await watch.until("the pair is protected", () => watch.protectedOn() !== undefined, PROTECT_TIMEOUT_MS);
    const holder = watch.protectedOn()!;
    const capture = await SwitchCapture.start(lab, this.directory, "forgery");
    await clients.flow(RECOVERY_TIMEOUT_MS);
    await sendAsVm(lab, otherHost(holder));
    await clients.flow(RECOVERY_TIMEOUT_MS); // and the VM's own frames after it
    await capture.stop();
    return judgeSenders(mergeCaptures(capture.paths), { holder, takeovers: 0 });
  }

  /** Ends the lab; the clients have to have got everything. */
  async close(): Promise<void> {
    await this.#end(true);
  }

  async #run(
    pair: Pair,
    number: number,
    fault: FaultCase,
    random: Random,
    capture: SwitchCapture,
  ): Promise<CycleFigures> {
    const { lab, faults, clients } = pair;
    const begun = performance.now();
    using watch = new PairWatch(lab);
    await watch.until("the pair is protected", () => watch.protectedOn() !== undefined, PROTECT_TIMEOUT_MS);
    const primary = watch.protectedOn()!;
    const secondary = otherHost(primary);
    const term = watch.latest[primary]?.term ?? 0;
    const scene: FaultScene = {
      faults,
      primary,
      secondary,
      random,
      startAgent: (letter) => lab.startAgent(letter),
      restartAgent: (letter) => lab.restartAgent(letter),
      startWitness: () => lab.startWitness(),
      nextEvent: (letter, name) => nextEvent(lab, letter, name),
    };
    if (fault.whileProtecting) await protectAnew(lab, watch, scene);
    await lasting(random.integer(0, fault.whileProtecting ? 1_500 : 600));

    await clients.connection.mark();
    await fault.inject(scene);
    const holder = await reachable(watch, clients, fault, primary);
    const gapMs = clients.connection.last!.longestGapMs;
    await fault.heal?.(scene);
    await quiet(HARM_MS);
    await clients.readBlocks(random);

    const protectBegun = performance.now();
    const unprotected = watch.protectedOn() !== holder;
    if (unprotected) {
      await lab.bringBack(otherHost(holder));
      await watch.until("protected again", () => watch.protectedOn() === holder, PROTECT_TIMEOUT_MS);
    }
    const protectMs = unprotected ? performance.now() - protectBegun : undefined;
    await clients.flow(RECOVERY_TIMEOUT_MS);
    clients.check();

    const takeovers = (watch.latest[holder]?.term ?? 0) - term;
    if (takeovers !== (holder === primary ? 0 : 1)) {
      throw new Error(`host ${primary} had the VM, host ${holder} has it, and the term grew by ${takeovers}`);
    }
    checkRoles(watch.latest, holder);
    await checkRoutes(lab);
    await capture.stop();
    const frames = mergeCaptures(capture.paths);
    const complaints = judgeSenders(frames, { holder: primary, takeovers });
    if (frames.at(-1)?.port !== holder)
      complaints.push(`the last frame came from host ${frames.at(-1)?.port}`);
    if (complaints.length > 0) throw new Error(complaints.join("; "));
    return {
      cycle: number,
      fault: fault.name,
      gapMs,
      takeovers,
      protectMs,
      cycleMs: performance.now() - begun,
    };
  }

  /** The lab's directory goes with it. */
  #keepLogs(lab: Lab, number: number): void {
    for (const letter of ["a", "b"]) {
      for (const log of ["agent.log", "qemu.log", "serial.log"]) {
        const path = join(lab.directory, letter, log);
        if (existsSync(path)) copyFileSync(path, join(this.directory, `cycle-${number}-${letter}-${log}`));
      }
    }
  }

  async #protectedPair(): Promise<Pair> {
    const old = this.#pair;
    if (old !== undefined && old.cycles < CYCLES_PER_LAB && old.clients.blocks < BLOCKS_PER_LAB) return old;
    await this.#end(true);
    await Lab.down(LAB);
    const lab = await Lab.up({ name: LAB, proxy: "agent", niceness: NICENESS, ...OPTIONS });
    const pair = { lab, faults: new LabFaults(lab), clients: new Clients(lab), cycles: 0 };
    this.#pair = pair;
    await pair.clients.flow(RECOVERY_TIMEOUT_MS);
    return pair;
  }

  async #end(orderly: boolean): Promise<void> {
    const pair = this.#pair;
    this.#pair = undefined;
    if (pair === undefined) return;
    try {
      if (orderly) await pair.clients.finish();
    } finally {
      pair.clients[Symbol.dispose]();
      await Lab.down(LAB);
    }
  }
}

/** The secondary's host is lost and comes back; resolves as soon as the VM is being protected. */
async function protectAnew(lab: Lab, watch: PairWatch, { primary, secondary }: FaultScene): Promise<void> {
  await lab.kill(secondary, "both");
  await watch.until("alone", () => watch.latest[primary]?.phase === "alone", RECOVERY_TIMEOUT_MS);
  await lab.bringBack(secondary);
  const begun = () => ["protecting", "protected"].includes(watch.latest[primary]?.phase ?? "");
  await watch.until("protecting", begun, RECOVERY_TIMEOUT_MS);
}

/** Resolves with the VM's host when clients are served again, and it is the right one. */
async function reachable(
  watch: PairWatch,
  clients: Clients,
  { outcome }: FaultCase,
  primary: HostLetter,
): Promise<HostLetter> {
  let holder: HostLetter;
  if (outcome === "stays" || outcome === "any") {
    await quiet(SETTLE_MS);
    await watch.until("one host has the VM", () => watch.holders().length === 1, RECOVERY_TIMEOUT_MS);
    holder = watch.holders()[0]!;
    if (outcome === "stays" && watch.protectedOn() !== primary) {
      throw new Error(`the pair should have stayed protected; ${watch.said()}`);
    }
  } else {
    const candidates: readonly HostLetter[] =
      outcome === "primary" ? [primary] : outcome === "secondary" ? [otherHost(primary)] : ["a", "b"];
    // "protected" would be news from before the fault. A VM is protected again by itself only after the lost
    // host has come back.
    const alone = () => candidates.find((letter) => watch.latest[letter]?.phase === "alone");
    await watch.until(
      `host ${candidates.join(" or ")} goes on`,
      () => alone() !== undefined,
      RECOVERY_TIMEOUT_MS,
    );
    holder = alone()!;
  }
  await clients.flow(RECOVERY_TIMEOUT_MS);
  return holder;
}

function checkRoles(status: Record<HostLetter, VmStatus | undefined>, holder: HostLetter): void {
  const own = status[holder];
  const other = status[otherHost(holder)];
  const good =
    own?.role === "primary" &&
    own.protected &&
    other?.role === "secondary" &&
    !other.protected &&
    other.phase === "standby";
  if (!good) throw new Error(`the agents' status is not that of a protected pair: ${JSON.stringify(status)}`);
}

/** A link that was down has lost its routes; without this one a checkpoint takes four times as long. */
async function checkRoutes(lab: Lab): Promise<void> {
  for (const letter of ["a", "b"] as const) {
    const child = Bun.spawn(["ip", "-netns", lab.namespaces[letter], "route", "show", "dev", "repl"]);
    const routes = await new Response(child.stdout).text();
    if (!routes.includes("quickack 1")) throw new Error(`host ${letter} delays its ACKs again: ${routes}`);
  }
}

/** Another card with the VM's MAC on a host's bridge asks for an address once. */
async function sendAsVm(lab: Lab, letter: HostLetter): Promise<void> {
  const ip = (...words: string[]) => run("ip", "-netns", lab.namespaces[letter], ...words);
  await ip("link", "add", "forged0", "type", "veth", "peer", "name", "forged1", "address", GUEST_MAC);
  try {
    await ip("link", "set", "forged0", "master", "br0", "up");
    await ip("address", "add", `${FORGED_IPV4}/32`, "dev", "forged1");
    await ip("link", "set", "forged1", "up");
    await ip("route", "add", `${NOBODYS_IPV4}/32`, "dev", "forged1");
    const program =
      `(await Bun.udpSocket({})).send("x", 9, "${NOBODYS_IPV4}"); await Bun.sleep(200); ` +
      "process.exit(0);";
    await run(...inNamespace(lab.namespaces[letter]), process.execPath, "-e", program);
  } finally {
    await ip("link", "del", "forged0");
    // The bridges have learned the VM's MAC at the wrong port, and would not find the VM until it sends
    // something of its own accord.
    for (const bridged of [lab.namespaces.a, lab.namespaces.b, lab.namespaces.switch]) {
      await run("ip", "-netns", bridged, "link", "set", "br0", "type", "bridge", "fdb_flush");
    }
  }
}

async function nextEvent(lab: Lab, letter: HostLetter, name: string): Promise<void> {
  const qmp = await QmpClient.connect(lab.host(letter).qmp!);
  try {
    await qmp.waitFor(name, () => true, EVENT_TIMEOUT_MS);
  } finally {
    qmp.close();
  }
}

/** What a log has got since it was looked at first. */
class LogTail {
  readonly #from: number;

  constructor(readonly path: string) {
    this.#from = statSync(path, { throwIfNoEntry: false })?.size ?? 0;
  }

  /** The last lines without the everyday ones. */
  read(lines = 60): string {
    const text = readFileSync(this.path, "utf8").slice(this.#from);
    const told = text.split("\n").filter((line) => !/"message":"(checkpoint|divergence)"/.test(line));
    return told.slice(-lines).join("\n");
  }
}
