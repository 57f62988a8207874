/**
 * Real TCP through the whole path: two "VMs" (namespaces with a kernel's TCP each, and the same addresses),
 * held output, mirrored input, rewritten numbers; then the primary's host dies and the secondary goes on with
 * the same connections.
 *
 * What the comparer does is done here in its simplest form: a frame of the primary is released once the
 * secondary has sent, and acknowledged, as much.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { join } from "node:path";
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import { RECORD, RECORD_HEADER_BYTES, RECORD_SEND_OFFSET, ROLE, VNET_BYTES } from "../../src/ffi/layout.ts";
import { ifindex } from "../../src/ffi/libc.ts";
import { inNamespace } from "../../src/ffi/netns.ts";
import { PacketSocket } from "../../src/ffi/packet_socket.ts";
import { Ring } from "../../src/ffi/ring.ts";
import { until } from "../until.ts";
import { endLease, grantLease } from "./data_plane_under_test.ts";
import { tcp } from "./frames.ts";
import {
  addNamespace,
  ip,
  linkHosts,
  REPLICATION,
  removeNamespaces,
  run,
  startPlane,
  stopPlane,
} from "./network.ts";

const PREFIX = "colo-test-conn-";
const NET = `${PREFIX}net`;
const HOSTS = [`${PREFIX}p`, `${PREFIX}s`] as const;
const GUESTS = [`${PREFIX}vp`, `${PREFIX}vs`] as const;
const GUEST_MAC = "02:00:00:00:00:02";
const CLIENT_MAC = "02:00:00:00:00:01";
const PORT = 7000;

/** A peer.ts in a namespace. */
class Peer {
  readonly #process: Bun.Subprocess<"pipe", "pipe", "inherit">;
  readonly #lines: string[] = [];
  readonly #reading: Promise<void>;

  constructor(namespace: string) {
    const program = join(import.meta.dir, "peer.ts");
    this.#process = Bun.spawn(["ip", "netns", "exec", namespace, process.execPath, program], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "inherit",
    });
    this.#reading = this.#read();
  }

  tell(line: string): void {
    this.#process.stdin.write(`${line}\n`);
    this.#process.stdin.flush();
  }

  /** The next line it says. */
  async answer(): Promise<string> {
    return until(`answer (${this.#process.pid})`, () => this.#lines.shift());
  }

  async ask(line: string): Promise<string> {
    this.tell(line);
    return this.answer();
  }

  async end(): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#reading;
  }

  async #read(): Promise<void> {
    let rest = "";
    for await (const chunk of this.#process.stdout) {
      const lines = (rest + Buffer.from(chunk).toString()).split("\n");
      rest = lines.pop()!;
      this.#lines.push(...lines);
    }
  }
}

/** How far the secondary has got with a connection, in the primary's numbers. */
interface Progress {
  syn: boolean;
  sent: number;
  acknowledged: number;
}

/** Reads what matters of the TCP header of a record: the connection's ports, and how far it goes. */
function describeRecord(ring: Ring, slot: number) {
  const { view } = ring;
  const at = ring.offset(slot);
  const frame = at + RECORD_HEADER_BYTES;
  const v6 = view.getUint16(frame + 12) === 0x86dd;
  const transport = frame + 14 + (v6 ? 40 : 20);
  const protocol = view.getUint8(frame + 14 + (v6 ? 6 : 9));
  const end = frame + 14 + (v6 ? 40 + view.getUint16(frame + 18) : view.getUint16(frame + 16));
  const flags = view.getUint8(transport + 13);
  const data = end - transport - (view.getUint8(transport + 12) >> 4) * 4;
  return {
    isTcp: protocol === 6,
    flow: `${v6} ${view.getUint16(transport)} ${view.getUint16(transport + 2)}`,
    syn: (flags & tcp.SYN) !== 0,
    end: (view.getUint32(transport + 4) + data + ((flags & (tcp.SYN | tcp.FIN)) !== 0 ? 1 : 0)) | 0,
    acknowledgment: view.getUint32(transport + 8) | 0,
    bytes: VNET_BYTES + view.getUint32(at + RECORD.frame_bytes, true),
    sendAddress: ring.address + at + RECORD_SEND_OFFSET,
  };
}

/** The simplest comparer. */
class Releaser {
  released = 0;
  readonly #primary: Ring;
  readonly #secondary: Ring | undefined;
  readonly #socket: PacketSocket;
  readonly #progress = new Map<string, Progress>();
  #held: number[] = [];
  readonly #timer: Timer;

  /** @param alone release everything at once */
  constructor(namespace: string, plane: DataPlane, { alone = false } = {}) {
    this.#primary = new Ring(plane.workers[0].primary);
    this.#secondary = alone ? undefined : new Ring(plane.workers[0].secondary);
    this.#socket = inNamespace(namespace, () => new PacketSocket(ifindex("inj0")));
    this.#timer = setInterval(() => this.#step(), 1);
  }

  close(): void {
    clearInterval(this.#timer);
    this.#primary.close();
    this.#secondary?.close();
    this.#socket.close();
  }

  #step(): void {
    const secondary = this.#secondary;
    if (secondary !== undefined) {
      for (let slot = secondary.next(); slot >= 0; slot = secondary.next()) {
        const record = describeRecord(secondary, slot);
        const last = this.#progress.get(record.flow) ?? {
          syn: false,
          sent: record.end,
          acknowledged: record.acknowledgment,
        };
        this.#progress.set(record.flow, {
          syn: last.syn || record.syn,
          // The number on the first SYN is the secondary's own.
          sent: record.syn || !last.syn ? last.sent : later(last.sent, record.end),
          acknowledged: later(last.acknowledged, record.acknowledgment),
        });
        if (!record.syn && last.syn && !this.#numbersKnown.has(record.flow)) {
          this.#numbersKnown.add(record.flow);
          this.#progress.get(record.flow)!.sent = record.end;
        }
        secondary.done(slot);
      }
    }
    for (let slot = this.#primary.next(); slot >= 0; slot = this.#primary.next()) this.#held.push(slot);
    this.#held = this.#held.filter((slot) => !this.#release(slot));
    this.released += this.#socket.send();
    for (const slot of this.#sent.splice(0)) this.#primary.done(slot);
  }

  readonly #numbersKnown = new Set<string>();
  readonly #sent: number[] = [];

  #release(slot: number): boolean {
    const record = describeRecord(this.#primary, slot);
    if (this.#secondary !== undefined && record.isTcp) {
      const progress = this.#progress.get(record.flow);
      if (progress === undefined || !progress.syn) return false;
      if (!record.syn) {
        if (!this.#numbersKnown.has(record.flow)) return false;
        if (
          ((record.end - progress.sent) | 0) > 0 ||
          ((record.acknowledgment - progress.acknowledged) | 0) > 0
        )
          return false;
      }
    }
    this.#socket.queue(record.sendAddress, record.bytes);
    this.#sent.push(slot);
    return true;
  }
}

const later = (a: number, b: number) => (((b - a) | 0) > 0 ? b : a);

let planes: DataPlane[] = [];
const peers: Peer[] = [];
let releaser: Releaser | undefined;

beforeEach(() => {
  removeNamespaces(PREFIX);
  for (const name of [NET, ...HOSTS, ...GUESTS]) addNamespace(name);
  linkHosts(...HOSTS);
  ip(`-n ${NET} link add sw address ${CLIENT_MAC} type bridge mcast_snooping 0`);
  ip(`-n ${NET} link set sw up`);
  address(NET, "sw", 1);
  neighbour(NET, "sw", 2, GUEST_MAC);
  planes = HOSTS.map((host, i) => {
    ip(`-n ${host} link add br0 type bridge mcast_snooping 0`);
    ip(`-n ${host} link set br0 up`);
    ip(`-n ${host} link add up0 type veth peer name port${i} netns ${NET}`);
    ip(`-n ${NET} link set port${i} master sw up`);
    ip(`-n ${host} link add tap0 type veth peer name eth0 address ${GUEST_MAC} netns ${GUESTS[i]}`);
    for (const port of ["up0", "tap0"]) ip(`-n ${host} link set ${port} master br0 up`);
    ip(`-n ${GUESTS[i]} link set eth0 up`);
    address(GUESTS[i], "eth0", 2);
    neighbour(GUESTS[i], "eth0", 1, CLIENT_MAC);
    return startPlane({
      name: `conn-${i}`,
      namespace: host,
      tap: "tap0",
      peerIpv4: REPLICATION.ipv4[1 - i],
      ringBytes: 2 ** 23,
    });
  });
  planes[0].state.role = ROLE.PRIMARY;
  planes[1].state.role = ROLE.SECONDARY;
  grantLease(planes[0]);
  endLease(planes[1]);
  releaser = new Releaser(HOSTS[0], planes[0]);
});

afterEach(async () => {
  releaser?.close();
  releaser = undefined;
  for (const peer of peers.splice(0)) await peer.end();
  for (const [i, plane] of planes.splice(0).entries()) stopPlane(`conn-${i}`, plane);
  removeNamespaces(PREFIX);
});

function address(namespace: string, device: string, host: number): void {
  run("ip", "netns", "exec", namespace, "sysctl", "-qw", `net.ipv6.conf.${device}.disable_ipv6=0`);
  ip(`-n ${namespace} addr add 198.18.0.${host}/24 dev ${device}`);
  ip(`-n ${namespace} addr add 2001:2::${host}/64 dev ${device} nodad`);
}

function neighbour(namespace: string, device: string, host: number, mac: string): void {
  for (const where of [`198.18.0.${host}`, `2001:2::${host}`]) {
    ip(`-n ${namespace} neigh add ${where} lladdr ${mac} dev ${device} nud permanent`);
  }
}

function peer(namespace: string): Peer {
  const started = new Peer(namespace);
  peers.push(started);
  return started;
}

/** The primary's host is gone from one moment to the next; the secondary is told that it is alone. */
function failOver(): void {
  releaser!.close();
  releaser = undefined;
  planes[0].state.role = ROLE.BLOCKED;
  ip(`-n ${HOSTS[0]} link set up0 down`);
  ip(`-n ${HOSTS[0]} link set rep down`);
  grantLease(planes[1]);
  planes[1].state.role = ROLE.SOLO;
}

describe.each([
  ["IPv4", "198.18.0."],
  ["IPv6", "2001:2::"],
])("over %s", (_version, network) => {
  test("a client's connection goes on when the secondary takes over", async () => {
    const servers = GUESTS.map(peer);
    const client = peer(NET);
    for (const server of servers) expect(await server.ask(`listen ${PORT}`)).toBe("listening");
    expect(await client.ask(`connect ${network}2 ${PORT}`)).toBe("connected");
    expect(await client.ask("get 1000")).toBe("got 1000");
    expect(await client.ask("get 900000")).toBe("got 900000");
    expect(await client.ask("put 600000")).toBe("put 600000");
    expect(planes[1].connections.count()).toBe(1);
    expect(planes[0].counters().passed_released).toBeGreaterThan(0);
    expect(planes[1].counters().passed_solo).toBe(0);

    failOver();
    expect(await client.ask("get 300000")).toBe("got 300000");
    expect(await client.ask("put 300000")).toBe("put 300000");
    expect(planes[1].counters().passed_solo).toBeGreaterThan(0);

    // And as a primary again, with a connection whose numbers it has to keep putting right.
    planes[1].state.role = ROLE.PRIMARY;
    releaser = new Releaser(HOSTS[1], planes[1], { alone: true });
    expect(await client.ask("get 200000")).toBe("got 200000");
    expect(await client.ask("put 200000")).toBe("put 200000");
    expect(releaser.released).toBeGreaterThan(0);
  }, 60_000);

  test("a connection that the VM has opened goes on when the secondary takes over", async () => {
    const server = peer(NET);
    const guests = GUESTS.map(peer);
    expect(await server.ask(`listen ${PORT}`)).toBe("listening");
    // Both have to take the same port of their own, as two copies of one VM do.
    for (const guest of GUESTS) {
      run("ip", "netns", "exec", guest, "sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40000");
    }
    for (const guest of guests) guest.tell(`connect ${network}1 ${PORT}`);
    for (const guest of guests) expect(await guest.answer()).toBe("connected");
    for (const line of ["get 600000", "put 500000"]) {
      for (const guest of guests) guest.tell(line);
      for (const guest of guests) expect(await guest.answer()).toBe(line.replace("get", "got"));
    }

    failOver();
    expect(await guests[1].ask("get 200000")).toBe("got 200000");
    expect(await guests[1].ask("put 400000")).toBe("put 400000");
  }, 60_000);
});
