/**
 * Namespaces, data planes and processes for one run at a time; used again for the next one.
 *
 *   client ─ eth0 ══ port ─ switch ═╦═ up0 ─ br0 ─ tap0 ══ eth0 ─ guest     on host a
 *                                   ╚═ up0 ─ br0 ─ tap0 ══ eth0 ─ guest     on host b
 *
 * Both guests have the same addresses; each has a kernel's TCP of its own. The data path is the real one:
 * programs, tunnel, rings, worker with comparer, release. Frames are lost at the switch's port (before they
 * are mirrored), at the client, and in the tunnel.
 */
import { COMPARER_LIMITS } from "../../src/compare/comparer.ts";
import { DataPath } from "../../src/datapath/handle.ts";
import type { StatName } from "../../src/datapath/shared.ts";
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import { ROLE } from "../../src/ffi/layout.ts";
import { Arena, ifindex } from "../../src/ffi/libc.ts";
import { inNamespace } from "../../src/ffi/netns.ts";
import { PacketSocket } from "../../src/ffi/packet_socket.ts";
import { endLease, grantLease, MARK } from "../bpf/data_plane_under_test.ts";
import { addNamespace, ip, linkHosts, REPLICATION, run, startPlane, stopPlane } from "../bpf/network.ts";
import { Random } from "../random.ts";
import { until } from "../until.ts";
import { ChecksumWatch } from "./checksum_watch.ts";
import { Endpoint } from "./endpoint_process.ts";
import { ALL_LOST, Loss, type Place } from "./loss.ts";
import { CLIENT_ADDRESS, GUEST_ADDRESS, type Scenario } from "./scenario.ts";

export const PREFIX = "colo-test-stacks-";
const GUEST_MAC = "02:00:00:00:00:02";
const CLIENT_MAC = "02:00:00:00:00:01";
const HOSTS = [0, 1] as const;
const TUNNELS = ["tunnel_a", "tunnel_b"] as const;

/**
 * Longer than the stacks need to help themselves after a loss: a repeated SYN takes a second. What waits
 * longer waits for a checkpoint.
 */
const MAX_WAIT_MS = 2_500;
/** A connection that makes no headway for so long never will. */
const RUN_LIMIT_MS = 60_000;
/** Keeps repetitions short: the links are fast. Microseconds and milliseconds. */
const RTO_MIN_US = 20_000;
const RTO_MAX_MS = 1_000;

/**
 * "checkpoint": the comparer asked for one before the failover, and these guests cannot have one. "passed",
 * `underWay`: the client still had something to send or to get when the primary's host died.
 */
type Outcome = { kind: "passed"; underWay: boolean } | { kind: "checkpoint"; why: string };

interface Host {
  plane: DataPlane;
  path: DataPath;
  guest: Endpoint;
  name: string;
  /** At the VM's interface, for frames that the VM's kernel would not send. */
  announcer: PacketSocket;
}

/** A virtio_net_hdr and a reverse ARP request (RFC 903) to everybody. */
function announcement(): Uint8Array {
  const mac = Uint8Array.from(GUEST_MAC.split(":"), (byte) => Number.parseInt(byte, 16));
  const arp = [0, 1, 8, 0, 6, 4, 0, 3, ...mac, 0, 0, 0, 0, ...mac, 0, 0, 0, 0];
  return Uint8Array.from([
    ...new Uint8Array(10),
    ...new Uint8Array(6).fill(0xff),
    ...mac,
    0x80,
    0x35,
    ...arp,
  ]);
}

export class Lane {
  readonly name: string;
  readonly client: Endpoint;
  readonly checksums: ChecksumWatch;
  readonly #network: string;
  readonly #hosts: Host[] = [];
  readonly #loss: Loss;
  readonly #memory = new Arena(4096);
  #divergences: string[] = [];
  #failed: string | undefined;
  #epoch = 0;
  runs = 0;

  constructor(index: number, lossObject: string) {
    this.name = `${PREFIX}${index}`;
    this.#network = `${this.name}-net`;
    this.#loss = new Loss(lossObject);
    const hosts = HOSTS.map((host) => `${this.name}-h${host}`) as [string, string];
    const guests = HOSTS.map((host) => `${this.name}-g${host}`);
    for (const namespace of [this.#network, ...hosts, ...guests]) addNamespace(namespace);
    linkHosts(...hosts);
    this.#buildClient();
    for (const host of HOSTS) this.#buildHost(host, hosts[host], guests[host]!);
    this.client = new Endpoint(this.#network);
    this.checksums = new ChecksumWatch(this.#network, "eth0");
  }

  async ready(): Promise<void> {
    for (const { path } of this.#hosts) await path.ready();
    await this.checksums.ready();
  }

  /** @throws Error if a stream was not what it had to be, or ended, or stood still */
  async run(scenario: Scenario): Promise<Outcome> {
    this.runs++;
    try {
      await this.#prepare(scenario);
      await this.#connect(scenario);
      const early = await this.#until("mark of the client", () => this.client.said("mark"));
      if (early !== undefined) return early;
      await Bun.sleep(scenario.failoverDelayMs);
      const late = this.#needsCheckpoint();
      if (late !== undefined) return late;
      const underWay = !this.client.said("done");
      await this.#failOver(scenario);
      const survivor = this.#hosts[1 - scenario.primary]!;
      const done = () => this.client.said("done") && survivor.guest.said("done");
      await this.#until("end of all connections", done, survivor);
      return { kind: "passed", underWay };
    } finally {
      await this.#clear();
    }
  }

  /** Segments with a wrong checksum that somebody's TCP got. */
  checksumErrors(): number {
    const errors = [this.client, ...this.#hosts.map(({ guest }) => guest)].map(({ namespace }) =>
      run("ip", "netns", "exec", namespace, "nstat", "-asz", "TcpInCsumErrors"),
    );
    return errors.reduce((sum, text) => sum + Number(/TcpInCsumErrors\s+(\d+)/.exec(text)![1]), 0);
  }

  /** Over all runs. */
  stat(name: StatName): number {
    return this.#hosts.reduce((sum, { path }) => sum + path.shared.stat(name), 0);
  }

  dropped(place: Place): number {
    return this.#loss.dropped(place);
  }

  async close(): Promise<void> {
    await this.checksums.end();
    await this.client.end();
    for (const { guest, path, announcer } of this.#hosts) {
      announcer.close();
      await guest.end();
      await path.close();
    }
    for (const { plane, name } of this.#hosts) stopPlane(name, plane);
    this.#loss.close();
    this.#memory.close();
  }

  #buildClient(): void {
    const network = this.#network;
    ip(`-n ${network} link add sw type bridge mcast_snooping 0`);
    ip(`-n ${network} link set sw up`);
    ip(`-n ${network} link add eth0 address ${CLIENT_MAC} type veth peer name port`);
    ip(`-n ${network} link set port master sw up`);
    ip(`-n ${network} link set eth0 up`);
    // What reaches the client is cut and summed up before, as on a wire.
    run("ip", "netns", "exec", network, "ethtool", "-K", "port", "tx", "off", "tso", "off", "gso", "off");
    settle(network, 1, 2, GUEST_MAC);
    inNamespace(network, () => {
      this.#loss.attach("to_guest", ifindex("port"));
      this.#loss.attach("to_client", ifindex("eth0"));
    });
  }

  #buildHost(host: 0 | 1, namespace: string, guest: string): void {
    ip(`-n ${namespace} link add br0 type bridge mcast_snooping 0`);
    ip(`-n ${namespace} link set br0 up`);
    ip(`-n ${namespace} link add up0 type veth peer name port${host} netns ${this.#network}`);
    ip(`-n ${this.#network} link set port${host} master sw up`);
    ip(`-n ${namespace} link add tap0 type veth peer name eth0 address ${GUEST_MAC} netns ${guest}`);
    for (const port of ["up0", "tap0"]) ip(`-n ${namespace} link set ${port} master br0 up`);
    ip(`-n ${guest} link set eth0 up`);
    settle(guest, 2, 1, CLIENT_MAC);
    const plane = startPlane({
      name: namespace,
      namespace,
      tap: "tap0",
      peerIpv4: REPLICATION.ipv4[1 - host]!,
      ringBytes: 2 ** 23,
    });
    const path = inNamespace(namespace, () => {
      this.#loss.attach(TUNNELS[host], ifindex("rep"));
      return new DataPath(
        {
          dataPlane: plane,
          injectIfindex: ifindex("inj0"),
          tapIfindex: ifindex("tap0"),
          replayMark: MARK.replay,
          maxWaitMs: MAX_WAIT_MS,
          rules: {},
          limits: COMPARER_LIMITS,
        },
        {
          // A kernel also says things of its own in a namespace (multicast listener reports).
          diverged: ({ class: why, flow, detail }, epoch) => {
            const name = typeof flow === "string" ? flow : flow.text;
            if (epoch === this.#epoch && name.startsWith("tcp "))
              this.#divergences.push(`${why} ${name}: ${detail}`);
          },
          failed: (message) => {
            this.#failed = message;
          },
        },
      );
    });
    const announcer = inNamespace(guest, () => new PacketSocket(ifindex("eth0")));
    this.#hosts.push({ plane, path, guest: new Endpoint(guest), name: namespace, announcer });
  }

  /** A protected VM, as src/agent makes one, but with nothing to copy. */
  async #prepare({ primary, loss, seed }: Scenario): Promise<void> {
    const a = this.#hosts[primary]!;
    const b = this.#hosts[1 - primary]!;
    this.#epoch++;
    for (const { plane } of [a, b]) {
      plane.state.epoch = this.#epoch;
      plane.state.rewriteEpoch = this.#epoch;
      plane.connections.clear();
    }
    await a.path.start(this.#epoch);
    a.plane.state.role = ROLE.PRIMARY;
    grantLease(a.plane);
    b.plane.state.role = ROLE.SECONDARY;
    endLease(b.plane);
    this.#announce(a);
    const random = new Random(seed + 1);
    this.#loss.set("to_guest", loss.toGuest, random.uint32());
    this.#loss.set("to_client", loss.toClient, random.uint32());
    this.#loss.set(TUNNELS[1 - primary]!, loss.toSecondary, random.uint32());
    this.#loss.set(TUNNELS[primary], loss.toPrimary, random.uint32());
    this.#divergences = [];
  }

  async #connect({ client, guests, opens }: Scenario): Promise<void> {
    const all = [this.client, ...this.#hosts.map(({ guest }) => guest)];
    const tasks = [client, ...guests];
    const first = opens === "client" ? [1, 2] : [0];
    for (const starters of [first, [0, 1, 2].filter((i) => !first.includes(i))]) {
      for (const i of starters) all[i]!.tell({ order: "start", task: tasks[i]! });
      for (const i of starters) await all[i]!.hear("ready");
    }
  }

  /** The primary's host is gone from one moment to the next; a little later the secondary goes on alone. */
  async #failOver({ primary, takeoverDelayMs }: Scenario): Promise<void> {
    const a = this.#hosts[primary]!;
    const b = this.#hosts[1 - primary]!;
    a.plane.state.role = ROLE.BLOCKED;
    for (const tunnel of TUNNELS) this.#loss.set(tunnel, ALL_LOST, 1);
    await Bun.sleep(takeoverDelayMs);
    grantLease(b.plane);
    b.plane.state.role = ROLE.SOLO;
    await b.path.releaseAlone();
    this.#announce(b);
  }

  /** The VM says where it is, as QEMU does for it (announce_self): the bridges send what is for it there. */
  #announce({ announcer }: Host): void {
    const frame = announcement();
    announcer.queue(this.#memory.copy(frame), frame.length);
    announcer.send();
    this.#memory.reset();
  }

  /** Nothing of this run may show up in the next one. */
  async #clear(): Promise<void> {
    for (const { plane, path } of this.#hosts) {
      plane.state.role = ROLE.BLOCKED;
      await path.releaseAlone();
    }
    const all = [this.client, ...this.#hosts.map(({ guest }) => guest)];
    for (const endpoint of all) endpoint.forget();
    for (const endpoint of all) endpoint.tell({ order: "abort" });
    for (const endpoint of all) await until("end of a run", () => endpoint.said("aborted"));
    for (const endpoint of all) endpoint.forget();
    // Those that their process has let go of, too: they would repeat themselves into the next run.
    const kills = all.map(({ namespace }) =>
      Bun.spawn(["ss", "-N", namespace, "-K", "-ta"], { stdout: "ignore" }),
    );
    for (const kill of kills) await kill.exited;
  }

  #needsCheckpoint(): Outcome | undefined {
    const why = this.#divergences[0];
    return why === undefined ? undefined : { kind: "checkpoint", why };
  }

  /** Waits; before the failover also for a divergence. */
  async #until(what: string, look: () => boolean, survivor?: Host): Promise<Outcome | undefined> {
    const endpoints =
      survivor === undefined
        ? [this.client, ...this.#hosts.map(({ guest }) => guest)]
        : [this.client, survivor.guest];
    let outcome: Outcome | undefined;
    const settled = () => {
      if (this.#failed !== undefined) throw new Error(this.#failed);
      const failure = endpoints.map((endpoint) => endpoint.failure()).find((text) => text !== undefined);
      if (failure !== undefined) throw new Error(failure);
      if (look()) return true;
      if (survivor === undefined) outcome = this.#needsCheckpoint();
      return outcome !== undefined;
    };
    try {
      await until(what, settled, { limitMs: RUN_LIMIT_MS });
    } catch (error) {
      throw new Error(`${(error as Error).message}\n${await this.#describe()}`);
    }
    return outcome;
  }

  async #describe(): Promise<string> {
    const lines: string[] = [];
    for (const endpoint of [this.client, ...this.#hosts.map(({ guest }) => guest)]) {
      endpoint.tell({ order: "progress" });
      const progress = await endpoint.hear("progress", 1_000).catch((error: Error) => error.message);
      lines.push(`${endpoint.namespace}: ${JSON.stringify(progress)}`);
      lines.push(run("ss", "-N", endpoint.namespace, "-Htino", "state", "connected").trim());
    }
    for (const { plane, name, path } of this.#hosts) {
      const counters = Object.entries(plane.counters()).filter(([, count]) => count > 0);
      lines.push(
        `${name}: role ${plane.state.role}, ${plane.connections.count()} connections, ` +
          `${path.shared.stat("held_frames")} held, ${JSON.stringify(Object.fromEntries(counters))}`,
      );
    }
    return lines.join("\n");
  }
}

/** Addresses in a namespace, and where the other side is. */
function settle(namespace: string, own: 1 | 2, other: 1 | 2, otherMac: string): void {
  const addresses = own === 1 ? CLIENT_ADDRESS : GUEST_ADDRESS;
  const others = other === 1 ? CLIENT_ADDRESS : GUEST_ADDRESS;
  const settings = [
    "net.ipv6.conf.eth0.disable_ipv6=0",
    `net.ipv4.tcp_rto_min_us=${RTO_MIN_US}`,
    `net.ipv4.tcp_rto_max_ms=${RTO_MAX_MS}`,
    // Of a socket that its process has closed; 0 would mean none as soon as the longest timeout is reached.
    "net.ipv4.tcp_orphan_retries=100",
  ];
  run("ip", "netns", "exec", namespace, "sysctl", "-qw", ...settings);
  ip(`-n ${namespace} addr add ${addresses[4]}/24 dev eth0`);
  ip(`-n ${namespace} addr add ${addresses[6]}/64 dev eth0 nodad`);
  for (const address of [others[4], others[6]]) {
    ip(`-n ${namespace} neigh add ${address} lladdr ${otherMac} dev eth0 nud permanent`);
  }
}
