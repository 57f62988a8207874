/**
 * The same conversation of two real TCP stacks twice, captured by tcpdump: initial sequence numbers,
 * segments, acknowledgements and their timing are what the kernel makes of it, once with large segments
 * (segmentation offload), once with small ones.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import { ip, removeNamespaces, run } from "../bpf/network.ts";
import { until } from "../until.ts";
import { CaptureFolder } from "./capture_files.ts";
import { compareFiles } from "./comparison.ts";
import { ADDRESSES, ANSWER_BYTES, END_MARK, PORTS, UPLOAD_BYTES } from "./peers.ts";

const PREFIX = "colo-test-capture-";
const NAMESPACES = { server: `${PREFIX}server`, client: `${PREFIX}client` } as const;
const CHANGED_BYTE = 1_234_567;
const SETTLE_LIMIT_MS = 15_000;
const PEERS = join(import.meta.dir, "peers.ts");

const folder = new CaptureFolder();
const running: Bun.Subprocess[] = [];

afterAll(() => {
  for (const child of running) if (child.exitCode === null) child.kill("SIGKILL");
  removeNamespaces(PREFIX);
  folder.remove();
});

function start(namespace: string, ...command: string[]) {
  const child = Bun.spawn(["ip", "netns", "exec", namespace, ...command], { stdout: "pipe", stderr: "pipe" });
  running.push(child);
  return child;
}

/**
 * Waits until the output has this text. Reads it to its end: a process whose pipe is closed early ends when
 * it writes.
 */
function says(output: ReadableStream<Uint8Array>, text: string): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const read = async () => {
    let seen = "";
    for await (const piece of output) {
      seen += new TextDecoder().decode(piece);
      if (seen.includes(text)) resolve();
    }
    reject(new Error(`"${text}" was expected, but there was only: ${seen}`));
  };
  void read().catch(reject);
  return promise;
}

/** A network of two hosts in which nothing speaks by itself. */
function buildNetwork(largeSegments: boolean): void {
  removeNamespaces(PREFIX);
  for (const namespace of Object.values(NAMESPACES)) {
    ip(`netns add ${namespace}`);
    run("ip", "netns", "exec", namespace, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1");
  }
  ip(`-n ${NAMESPACES.server} link add eth0 type veth peer name eth0 netns ${NAMESPACES.client}`);
  for (const end of ["server", "client"] as const) {
    if (!largeSegments) ip(`-n ${NAMESPACES[end]} link set eth0 gso_max_segs 1`);
    ip(`-n ${NAMESPACES[end]} addr add ${ADDRESSES[end]}/24 dev eth0`);
    ip(`-n ${NAMESPACES[end]} link set eth0 up`);
    ip(`-n ${NAMESPACES[end]} route add 239.0.0.0/8 dev eth0`);
  }
}

/** Sends a datagram that nobody answers, and waits until it is in the file: so is everything before it. */
async function settled(file: string): Promise<void> {
  run("ip", "netns", "exec", NAMESPACES.server, process.execPath, PEERS, "mark");
  await until(
    `tcpdump has written its last frame to ${file}`,
    async () => Buffer.from(await Bun.file(file).arrayBuffer()).includes(END_MARK),
    { limitMs: SETTLE_LIMIT_MS, pollMs: 50 },
  );
}

async function record(largeSegments: boolean, changedByte: number): Promise<string> {
  buildNetwork(largeSegments);
  const file = folder.next();
  const options = ["-U", "-s", "0", "-B", "65536", "-Z", "root"];
  const tcpdump = start(NAMESPACES.server, "tcpdump", "-i", "eth0", "-w", file, ...options);
  await says(tcpdump.stderr, "listening on");
  const server = start(NAMESPACES.server, process.execPath, PEERS, "server", `${changedByte}`);
  await says(server.stdout, "listening");
  const client = start(NAMESPACES.client, process.execPath, PEERS, "client");
  expect(await client.exited).toBe(0);
  expect(await server.exited).toBe(0);
  await settled(file);
  tcpdump.kill("SIGINT");
  await tcpdump.exited;
  return file;
}

let large: string;
let small: string;
let changed: string;

beforeAll(async () => {
  large = await record(true, -1);
  small = await record(false, -1);
  changed = await record(false, CHANGED_BYTE);
}, 60_000);

test("two runs are the same, whatever the kernels made of them", () => {
  const report = compareFiles(large, small);
  expect(report.divergences).toEqual([]);
  expect(report.compared_bytes).toBe(UPLOAD_BYTES + ANSWER_BYTES + END_MARK.length);
  // The test is about different segments.
  expect(report.secondary.frames).toBeGreaterThan(2 * report.primary.frames);
  expect(compareFiles(small, large)).toMatchObject({ same: true });
});

test("one changed byte in 1.5 MB is found, and the rest is not compared again", () => {
  const flow = `tcp ${ADDRESSES.server}:${PORTS.server} > ${ADDRESSES.client}:${PORTS.client}`;
  for (const [primary, secondary] of [
    [large, changed],
    [changed, small],
  ] as const) {
    expect(compareFiles(primary, secondary).divergences).toMatchObject([
      { class: "payload", flow, stream_offset: CHANGED_BYTE },
    ]);
  }
});

test("--guest leaves the client's direction out", () => {
  const report = compareFiles(large, changed, { guests: [ADDRESSES.client] });
  expect(report).toMatchObject({ same: true, compared_bytes: UPLOAD_BYTES });
  expect(compareFiles(large, changed, { guests: [ADDRESSES.server] }).divergences_total).toBe(1);
});
