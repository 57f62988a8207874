/** Kind "udp": datagrams that come back. Loss is counted, a wrong datagram is an error. */
import { createSocket } from "node:dgram";
import { readFileSync } from "node:fs";
import { GUEST_PORTS } from "../guest_ports.ts";
import { patternBytes } from "../pattern.ts";
import { untilEnd } from "./connection.ts";
import type { Recorder } from "./recorder.ts";

const DATAGRAM_BYTES = 512;
const PAUSE_MS_DEFAULT = 10;
/** Given to the last datagrams. */
const LAST_ANSWERS_MS = 2_000;
/**
 * What was held for seconds comes back at once, before this process gets to run, and each frame takes a page
 * or more of the buffer. The kernel gives no more than net.core.rmem_max.
 */
const BUFFER_BYTES = 4 << 20;

export async function udp(recorder: Recorder): Promise<void> {
  const type = recorder.options.host.includes(":") ? "udp6" : "udp4";
  const socket = createSocket({ type, recvBufferSize: BUFFER_BYTES });
  const fullBefore = fullSockets(type);
  const awaited = new Map<number, number>();
  let next = 0;
  socket.on("message", (message) => {
    const number = message.readUInt32BE(4);
    if (!message.equals(patternBytes(number * 8, DATAGRAM_BYTES))) {
      recorder.fail("UDP: a wrong datagram came back");
    }
    const sentAt = awaited.get(number);
    if (sentAt === undefined) return;
    awaited.delete(number);
    recorder.latencies.push(performance.now() - sentAt);
    recorder.answers++;
    recorder.arrived(DATAGRAM_BYTES);
  });
  socket.on("error", (error) => recorder.fail(`UDP: ${error.message}`));
  await new Promise<void>((resolve) => socket.connect(GUEST_PORTS.echo, recorder.options.host, resolve));
  const timer = setInterval(() => {
    const number = next++;
    awaited.set(number, performance.now());
    recorder.sent += DATAGRAM_BYTES;
    socket.send(patternBytes(number * 8, DATAGRAM_BYTES));
  }, recorder.options.pauseMs ?? PAUSE_MS_DEFAULT);
  await untilEnd(recorder.options);
  clearInterval(timer);
  const deadline = performance.now() + LAST_ANSWERS_MS;
  while (awaited.size > 0 && performance.now() < deadline) await Bun.sleep(20);
  recorder.lost = awaited.size;
  recorder.noRoom = fullSockets(type) - fullBefore;
  socket.close();
}

/**
 * Datagrams that the full sockets of this network namespace have dropped (net/ipv4/proc.c, net/ipv6/proc.c).
 */
function fullSockets(type: "udp4" | "udp6"): number {
  if (type === "udp6") {
    const line = /^Udp6RcvbufErrors\s+(\d+)$/m.exec(readFileSync("/proc/self/net/snmp6", "latin1"));
    return Number(line?.[1] ?? 0);
  }
  const rows = readFileSync("/proc/self/net/snmp", "latin1").matchAll(/^Udp: (.*)$/gm);
  const [names = [], values = []] = [...rows].map(([, row = ""]) => row.split(" "));
  return Number(values[names.indexOf("RcvbufErrors")] ?? 0);
}
