/**
 * Guesses at why two VMs with the same input sent different bytes: what the protocol puts there that is no
 * function of its input.
 */
import { serviceOf } from "./flow.ts";
import {
  countDifferent,
  lineAround,
  payloadByte,
  payloadDifference,
  primarySide,
  type Side,
  secondarySide,
} from "./payloads.ts";
import type { DivergenceRecord, FlowDescription } from "./record.ts";

/** Bytes from the difference on that are looked at to tell random data from a field. */
const RANDOM_SAMPLE_BYTES = 64;
const RANDOM_SAMPLE_MIN = 16;
const TLS_HANDSHAKE = 22;
const TLS_APPLICATION_DATA = 23;

const HEADERS: Record<string, string> = {
  date: "the time of the answer; the second changed between the two VMs' answers",
  expires: "a time computed from the clock",
  "last-modified": "a time taken from the clock",
  age: "an elapsed time",
  "set-cookie": "usually a random session number",
  etag: "often made from a time or a random number",
  "x-request-id": "a random number",
  "x-runtime": "a measured time",
  "server-timing": "a measured time",
};

/** Sentences, the likeliest first. Payload is looked at only if the record still has it. */
export function hintsOf(record: DivergenceRecord): string[] {
  const { class: why } = record;
  if (why === "overflow" || why === "boundary") return [];
  const hints: string[] = [];
  const primary = primarySide(record);
  const secondary = secondarySide(record);
  const seen = why === "payload" && !record.redacted && primary !== undefined;
  if (seen) hints.push(...payloadHints(primary));
  if (hints.length === 0) hints.push(...portHints(record));
  if (seen && secondary !== undefined) hints.push(...extentHints(primary, secondary));
  return hints;
}

function payloadHints(primary: Side): string[] {
  const hints: string[] = [];
  const at = payloadDifference(primary);
  const tls = tlsRecordAt(primary, at);
  if (tls === TLS_HANDSHAKE) {
    hints.push(
      "This is a TLS handshake. It contains 32 random bytes and an ephemeral key, so every new TLS " +
        "connection of the VM diverges.",
    );
  } else if (tls === TLS_APPLICATION_DATA) {
    hints.push(
      "This is data inside TLS: after different handshakes the two VMs encrypt with different keys.",
    );
  }
  const header = /^([A-Za-z][A-Za-z-]*):/.exec(lineAround(primary) ?? "")?.[1];
  const meaning = header === undefined ? undefined : HEADERS[header.toLowerCase()];
  if (meaning !== undefined)
    hints.push(`The difference is in an HTTP header "${header}:", which holds ${meaning}.`);
  return hints;
}

/** Content type of the TLS record that the payload begins with (RFC 8446 5.1), if the difference is in it. */
function tlsRecordAt(side: Side, difference: number | undefined): number | undefined {
  const type = payloadByte(side, 0);
  if (type !== TLS_HANDSHAKE && type !== TLS_APPLICATION_DATA) return undefined;
  if (payloadByte(side, 1) !== 3 || (payloadByte(side, 2) ?? 255) > 4) return undefined;
  return difference === undefined ? undefined : type;
}

/** By protocol and service port. */
function portHints(record: DivergenceRecord): string[] {
  const { flow } = record;
  if (record.class !== "payload" && record.class !== "length") return absenceHints(flow);
  if (flow.protocol === "icmp" || flow.protocol === "icmpv6") {
    return ["A ping from the VM contains its time of sending."];
  }
  if (flow.protocol === "50") return ["ESP is encrypted, with keys that the two VMs agreed on separately."];
  const service = serviceOf(flow);
  if (service === undefined) return [];
  const key = `${flow.protocol} ${service.port}`;
  const text = PORT_HINTS[key] ?? PORT_HINTS[`${key} ${service.side === "source" ? "server" : "client"}`];
  return text === undefined ? [] : [text];
}

function absenceHints(flow: FlowDescription): string[] {
  if (serviceOf(flow)?.side !== "destination") return [];
  return [
    "Clients choose their port at random: the other VM may have sent the same data from another port, in " +
      "another flow.",
  ];
}

const TLS_PORT =
  "A TLS handshake contains 32 random bytes and an ephemeral key, so every new connection of the VM " +
  "diverges.";
const DHCP = "A DHCP client chooses a random transaction number and counts its seconds of waiting.";
const DHCPV6 = "A DHCPv6 client chooses a random transaction number.";
/** By protocol and port, and by what the VM is where only one end does it. */
const PORT_HINTS: Record<string, string> = {
  "tcp 22":
    "An SSH key exchange contains a random cookie and an ephemeral key, so every new connection diverges.",
  "tcp 80 server": "HTTP servers send the time in the Date: header and random numbers in cookies.",
  "tcp 8080 server": "HTTP servers send the time in the Date: header and random numbers in cookies.",
  "tcp 443": TLS_PORT,
  "tcp 465": TLS_PORT,
  "tcp 636": TLS_PORT,
  "tcp 853": TLS_PORT,
  "tcp 993": TLS_PORT,
  "tcp 995": TLS_PORT,
  "tcp 6443": TLS_PORT,
  "tcp 8443": TLS_PORT,
  "tcp 3306 server": "A MySQL server's greeting has 20 random bytes, so every new connection diverges.",
  "tcp 5432 server":
    "PostgreSQL gives each session a random cancel key and a random password salt, so every new " +
    "connection diverges.",
  "tcp 53 client": "A DNS client gives each query a random number.",
  "udp 53 client": "A DNS client gives each query a random number (its first two bytes) and a random port.",
  "udp 67": DHCP,
  "udp 68": DHCP,
  "udp 123": "NTP carries the time of day, in fractions of a microsecond.",
  "udp 161": "SNMP numbers its requests at random and reports times and counters.",
  "udp 319": "PTP carries the time of day.",
  "udp 320": "PTP carries the time of day.",
  "udp 443": "QUIC begins with random connection identifiers and keys.",
  "udp 500": "IKE begins with random cookies and keys.",
  "udp 514": "Each syslog message contains the time and a process number.",
  "udp 546": DHCPV6,
  "udp 547": DHCPV6,
  "udp 3478": "STUN numbers its requests at random.",
  "udp 4500": "IPsec is encrypted, with keys that the two VMs agreed on separately.",
  "udp 5353": "mDNS waits for random times, so the two VMs order and combine answers differently.",
  "udp 51820": "WireGuard makes a new random key for each handshake.",
};

/** How far the difference goes. */
function extentHints(primary: Side, secondary: Side): string[] {
  if (primary.differenceAt === undefined || secondary.differenceAt === undefined) return [];
  const { compared, different } = countDifferent(primary, secondary, RANDOM_SAMPLE_BYTES);
  if (compared >= RANDOM_SAMPLE_MIN && different >= compared * 0.9) {
    return [
      `From the difference on, ${different} of ${compared} bytes differ, as in random or encrypted data.`,
    ];
  }
  if (compared >= RANDOM_SAMPLE_MIN && different <= 8) {
    return [
      `From the difference on, only ${different} of ${compared} bytes differ, as in a time, a counter or ` +
        "an identifier.",
    ];
  }
  return [];
}
