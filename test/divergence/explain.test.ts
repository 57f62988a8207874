/**
 * The words for each class, against texts in golden/ (COLO_UPDATE_GOLDEN=1 writes them anew: read the
 * difference), and the parts of which they are made.
 */
import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { adviceFor, ignoreRules, ruleFor } from "../../src/divergence/advice.ts";
import { explain, explanationOf } from "../../src/divergence/explain.ts";
import { hintsOf } from "../../src/divergence/hints.ts";
import { type DivergenceRecord, RECORD_CLASSES } from "../../src/divergence/record.ts";
import { redact } from "../../src/divergence/redact.ts";
import { concat, tcp, text, udp } from "../compare/frames.ts";
import { given } from "../variables.ts";
import {
  EXAMPLES,
  noise,
  parseFlow,
  record,
  TCP_PAYLOAD_AT,
  tlsHandshake,
  UDP_PAYLOAD_AT,
} from "./records.ts";

const GOLDEN = join(import.meta.dir, "golden");
const UPDATE = given("COLO_UPDATE_GOLDEN") === "1";

const TEXTS: Record<string, () => string> = Object.fromEntries([
  ...Object.entries(EXAMPLES).map(([name, example]) => [name, () => explain(example())]),
  ["payload_tls.redacted", () => explain(EXAMPLES.payload_tls!(), { redact: true })],
  ["payload_dns.redacted", () => explain(EXAMPLES.payload_dns!(), { redact: true })],
  ["unparsed.redacted", () => explain(EXAMPLES.unparsed!(), { redact: true })],
]);

describe("golden texts", () => {
  test.each(Object.keys(TEXTS))("%s", (name) => {
    const given = TEXTS[name]!();
    const file = join(GOLDEN, `${name}.txt`);
    if (UPDATE) writeFileSync(file, given);
    expect(given).toBe(readFileSync(file, "utf8"));
  });

  test("there is one for each class, and none too many", () => {
    const classes = new Set(Object.values(EXAMPLES).map((example) => example().class));
    expect([...classes].sort()).toEqual([...RECORD_CLASSES].sort());
    expect(readdirSync(GOLDEN).sort()).toEqual(
      Object.keys(TEXTS)
        .map((name) => `${name}.txt`)
        .sort(),
    );
  });

  test("no line is wider than a terminal of 110 columns", () => {
    for (const text of Object.values(TEXTS)) {
      for (const line of text().split("\n")) expect(line.length).toBeLessThanOrEqual(110);
    }
  });
});

test("colour is there only when asked for, and changes nothing else", () => {
  const plain = explain(tlsHandshake());
  const coloured = explain(tlsHandshake(), { color: true });
  expect(plain).not.toContain("\x1b");
  expect(coloured).toContain("\x1b[33m5e\x1b[39m");
  expect(Bun.stripANSI(coloured)).toBe(plain);
});

/** A TCP payload divergence whose sides are these texts. */
function streams(primary: string, secondary: string, port = 9000): DivergenceRecord {
  let at = 0;
  while (primary[at] === secondary[at]) at++;
  return record({
    flow: parseFlow(`tcp 198.18.0.2:${port} > 198.18.0.9:40000`),
    difference: { primaryFrameOffset: TCP_PAYLOAD_AT + at, secondaryFrameOffset: TCP_PAYLOAD_AT + at },
    primaryFrame: tcp({ sourcePort: port, payload: primary }),
    secondaryFrame: tcp({ sourcePort: port, payload: secondary }),
  });
}

function datagrams(flow: string, primary: Uint8Array, secondary: Uint8Array): DivergenceRecord {
  const at = UDP_PAYLOAD_AT + primary.findIndex((byte, i) => byte !== secondary[i]);
  const parsed = parseFlow(flow);
  const ports = { sourcePort: parsed.sourcePort!, destinationPort: parsed.destinationPort! };
  return record({
    flow: parsed,
    difference: { primaryFrameOffset: at, secondaryFrameOffset: at },
    primaryFrame: udp(primary, ports),
    secondaryFrame: udp(secondary, ports),
  });
}

describe("hints", () => {
  test("name the HTTP header that holds the difference, on any port", () => {
    const head = "HTTP/1.1 200 OK\r\nServer: x\r\n";
    const hint = (a: string, b: string) => hintsOf(streams(head + a, head + b)).join(" ");
    expect(hint("Date: Mon 1\r\n\r\n", "Date: Mon 2\r\n\r\n")).toContain('"Date:"');
    expect(hint("Set-Cookie: s=77\r\n", "Set-Cookie: s=78\r\n")).toContain("random session number");
    expect(hint("X-Other: 1\r\n\r\n", "X-Other: 2\r\n\r\n")).not.toContain("header");
  });

  test("know a TLS handshake by its bytes, and do not take others for one", () => {
    const hello = (seed: number, type: number) =>
      streams(
        String.fromCharCode(type, 3, 3, 0, 99, 2) + "\u0001".repeat(5),
        `${String.fromCharCode(type, 3, 3, 0, 99, 2)}${"\u0001".repeat(4)}${String.fromCharCode(seed)}`,
      );
    expect(hintsOf(hello(5, 22))[0]).toContain("TLS handshake");
    expect(hintsOf(hello(5, 23))[0]).toContain("inside TLS");
    expect(hintsOf(hello(5, 30))).toEqual([]);
  });

  test("tell random data from a field", () => {
    const a = noise(200, 1);
    const random = hintsOf(datagrams("udp 198.18.0.2:7000 > 198.18.0.9:7001", a, noise(200, 2)));
    expect(random.join(" ")).toContain("as in random or encrypted data");
    const b = a.slice();
    b[100]! ^= 1;
    const field = hintsOf(datagrams("udp 198.18.0.2:7000 > 198.18.0.9:7001", a, b));
    expect(field.join(" ")).toContain("only 1 of 64 bytes differ");
  });

  test.each([
    ["udp 198.18.0.2:123 > 198.18.0.9:123", "NTP"],
    ["udp 198.18.0.2:68 > 198.18.0.9:67", "DHCP"],
    ["udp 198.18.0.2:50000 > 198.18.0.9:53", "DNS"],
    ["udp 198.18.0.2:443 > 198.18.0.9:50000", "QUIC"],
    ["tcp 198.18.0.2:22 > 198.18.0.9:50000", "SSH"],
    ["icmp type 8 code 0 id 7 198.18.0.2 > 198.18.0.9", "ping"],
    ["ip protocol 50 198.18.0.2 > 198.18.0.9", "ESP"],
  ])("know %s by its numbers: %s", (flow, word) => {
    expect(hintsOf(record({ flow: parseFlow(flow) })).join(" ")).toContain(word);
  });
});

describe("the rule for a flow", () => {
  test.each([
    ["tcp 198.18.0.2:9000 > 198.18.0.9:40000", "tcp port 9000"],
    ["tcp 198.18.0.2:40000 > 198.18.0.10:9000", "tcp 198.18.0.10 port 9000"],
    ["tcp [2001:2::2]:40000 > [2001:2::9]:9000", "tcp 2001:2::9 port 9000"],
    ["udp 198.18.0.2:123 > 198.18.0.9:123", "udp port 123"],
    ["udp 198.18.0.2:40000 > 198.18.0.9:53", "udp port 53"],
    ["sctp 198.18.0.2:36412 > 198.18.0.9:36412", "sctp port 36412"],
    ["icmp type 8 code 0 id 7 198.18.0.2 > 198.18.0.9", "icmp 198.18.0.9"],
    ["icmpv6 type 128 code 0 id 7 2001:2::2 > 2001:2::9", "icmpv6 2001:2::9"],
    ["ip protocol 47 198.18.0.2 > 198.18.0.9 vlan 12", "47 198.18.0.9"],
    ["udp fragments 198.18.0.2 > 198.18.0.9", "udp 198.18.0.9"],
    ["udplite 198.18.0.2:40000 > 198.18.0.9:9000", "136 198.18.0.9 port 9000"],
    ["icmp type 8 code 0 id 7 2001:2::2 > 2001:2::9", undefined],
    ["frame ethertype 0x88cc 02:00:00:00:00:02 > 02:00:00:00:00:09", undefined],
    ["all flows", undefined],
  ])("%s", (flow, rule) => {
    expect(ruleFor(parseFlow(flow))).toBe(rule as string);
  });

  test("is not offered where it would not help", () => {
    for (const name of ["overflow", "boundary"]) {
      expect(adviceFor(EXAMPLES[name]!()).passthrough).toBeUndefined();
    }
  });
});

describe("bytes to ignore", () => {
  const bytes = (length: number, changed: number[], base = 0) => {
    const payload = noise(length, 3);
    for (const at of changed) payload[at] = (payload[at]! + 1 + base) & 0xff;
    return payload;
  };
  const rules = (flow: string, length: number, changed: number[]) =>
    ignoreRules(datagrams(flow, bytes(length, []), bytes(length, changed)));

  test("are all that differ, near ones together", () => {
    expect(rules("udp 198.18.0.2:7777 > 198.18.0.9:40000", 100, [10, 11, 14, 50])).toEqual([
      "udp port 7777 bytes 10-14,50-50",
    ]);
  });

  test("are whole fields of protocols that are known, equal by chance or not", () => {
    expect(rules("udp 198.18.0.2:40000 > 198.18.0.9:53", 40, [1])).toEqual(["udp port 53 bytes 0-1"]);
    expect(rules("udp 198.18.0.2:40000 > 198.18.0.9:123", 48, [43])).toEqual(["udp port 123 bytes 40-47"]);
    expect(rules("udp 198.18.0.2:68 > 198.18.0.9:67", 300, [5, 9])).toEqual(["udp port 67 bytes 4-9"]);
  });

  test("are not named when too much differs, when not everything was kept, or for TCP", () => {
    const flow = "udp 198.18.0.2:7777 > 198.18.0.9:40000";
    expect(ignoreRules(datagrams(flow, noise(200, 1), noise(200, 2)))).toEqual([]);
    expect(rules(flow, 200, [0, 20, 40, 60, 80])).toEqual([]);
    expect(ignoreRules(tlsHandshake())).toEqual([]);
    const whole = datagrams(flow, bytes(100, []), bytes(100, [3]));
    const cut = { frameBytes: 142, gapOffset: 80, gapBytes: 62 };
    expect(ignoreRules(whole)).toEqual(["udp port 7777 bytes 3-3"]);
    expect(
      ignoreRules({ ...whole, primaryFrame: whole.primaryFrame!.slice(0, 80), primaryCut: cut }),
    ).toEqual([]);
  });

  test("are named without the payload only if the protocol says which they are", () => {
    expect(ignoreRules(redact(EXAMPLES.payload_dns!()))).toEqual(["udp port 53 bytes 0-1"]);
    const other = datagrams("udp 198.18.0.2:7777 > 198.18.0.9:40000", bytes(100, []), bytes(100, [3]));
    expect(ignoreRules(redact(other))).toEqual([]);
  });
});

describe("hostile frames", () => {
  test("of any bytes, cut anywhere, are explained without a throw and without control characters", () => {
    const whole = [
      tcp({ payload: concat(text("\x1b[31m\x07"), noise(100, 1)), options: noise(12, 2) }),
      udp(noise(60, 3), { version: 6 }),
      noise(90, 4),
      new Uint8Array(0),
    ];
    for (const frame of whole) {
      for (let length = 0; length <= frame.length; length++) {
        for (const offset of [undefined, 0, length, 70_000]) {
          const given = record({
            primaryFrame: frame.slice(0, length),
            secondaryFrame: noise(length, length),
          });
          if (offset !== undefined) {
            given.difference = { primaryFrameOffset: offset, secondaryFrameOffset: offset };
          }
          for (const shown of [explain(given), explain(given, { redact: true })]) {
            expect(shown).not.toMatch(/[^\x20-\x7e\n]/);
          }
          expect(explanationOf(redact(given)).what).toHaveLength(3);
        }
      }
    }
  });
});
