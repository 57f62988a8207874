/**
 * No byte of payload leaves a redacted record, in whatever form it is asked for, with whatever headers it
 * has.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { divergencesOfDatabase } from "../../src/divergence/client.ts";
import { explain, explanationOf } from "../../src/divergence/explain.ts";
import { recordToJson } from "../../src/divergence/json.ts";
import { frameBytesOf, keepFrame, primaryOf } from "../../src/divergence/kept_frame.ts";
import { layoutOf } from "../../src/divergence/layout.ts";
import { writePcapng } from "../../src/divergence/pcapng.ts";
import type { DivergenceRecord } from "../../src/divergence/record.ts";
import { redact, redactText } from "../../src/divergence/redact.ts";
import { divergenceRoutes } from "../../src/divergence/routes.ts";
import { DivergenceStore } from "../../src/divergence/store.ts";
import { concat, ethernet, GUEST, icmp, ip, tcp, text, timestamps, udp } from "../compare/frames.ts";
import { record } from "./records.ts";

/** Bytes that no header, name or number of these tests contains: any two of them in a row are a leak. */
const SECRET = [0xd3, 0xa7, 0xe9, 0xb5, 0xf1, 0xcb, 0xad, 0x97];
const OTHER = [0xd3, 0xa7, 0xe9, 0xb5, 0x8d, 0x9b, 0xeb, 0xdd];
const repeated = (bytes: number[], length: number) => Uint8Array.from({ length }, (_, i) => bytes[i % 8]!);

/** Checksums that show when they stay. */
const CHECKSUM = 0xcbad;
const v6 = { version: 6 as const };
const ipv4InIpv4 = (payload: Uint8Array) => ip(4, tcp({ payload }).slice(14));
const hopByHop = (payload: Uint8Array) =>
  ip(0, concat(Uint8Array.from([17, 0, 1, 4, 0, 0, 0, 0]), udp(payload).slice(34)), v6);

const FRAMES: Record<string, (payload: Uint8Array) => Uint8Array> = {
  tcp: (payload) => tcp({ payload, checksum: CHECKSUM }),
  "tcp with options": (payload) => tcp({ payload, options: timestamps(1, 2), checksum: CHECKSUM }),
  "tcp over IPv6": (payload) => tcp({ payload, ...v6 }),
  "tcp with IP options": (payload) => tcp({ payload, ipOptions: Uint8Array.from([1, 1, 1, 0]) }),
  "tcp in two VLANs": (payload) => tcp({ payload, vlans: [12, 13] }),
  "tcp that claims more header than there is": (payload) => {
    const frame = tcp({ payload });
    frame[46] = 0xf0;
    return frame;
  },
  "tcp that claims less header than the least": (payload) => {
    const frame = tcp({ payload });
    frame[46] = 0x10;
    return frame;
  },
  "tcp with an unknown option": (payload) =>
    tcp({ payload, options: concat(Uint8Array.from([34, 10]), repeated(SECRET, 8), new Uint8Array(2)) }),
  "tcp with a known option of another length": (payload) =>
    tcp({ payload, options: concat(Uint8Array.from([2, 8]), repeated(SECRET, 6)) }),
  "ip with unknown options": (payload) =>
    udp(payload, { ipOptions: concat(Uint8Array.from([148, 8]), repeated(SECRET, 6)) }),
  udp: (payload) => udp(payload, { checksum: CHECKSUM }),
  "udp over IPv6 behind an option header": hopByHop,
  "a frame with padding that is no zeros": (payload) => concat(udp(new Uint8Array(2)), payload),
  "the first fragment": (payload) => udp(payload, { moreFragments: true }),
  "a later fragment": (payload) => ip(17, payload, { fragmentOffset: 10 }),
  "a fragment of IPv6": (payload) => ip(44, concat(Uint8Array.from([17, 0, 0, 81, 0, 0, 0, 1]), payload), v6),
  icmp: (payload) => icmp(payload, { checksum: CHECKSUM }),
  icmpv6: (payload) => icmp(payload, { ...v6, checksum: CHECKSUM }),
  sctp: (payload) =>
    ip(132, concat(Uint8Array.from([0, 80, 1, 2, 0, 0, 0, 9, 0xcb, 0xad, 0xcb, 0xad]), payload)),
  "an unknown IP protocol": (payload) => ip(99, payload),
  "IP in IP": ipv4InIpv4,
  "no IP": (payload) => ethernet(0x88b5, payload),
  "IPv4 with a wrong version": (payload) => ethernet(0x0800, payload),
  "IPv4 with a length beyond the frame": (payload) => udp(payload, { claimedBytes: 60_000 }),
  "IPv6 with headers that never end": (payload) => ip(0, concat(Uint8Array.from([0, 200]), payload), v6),
  "802.3 with a length": (payload) => ethernet(400, payload),
};

function secretRecord(frameOf: (payload: Uint8Array) => Uint8Array, length: number): DivergenceRecord {
  const primary = frameOf(repeated(SECRET, length));
  const secondary = frameOf(repeated(OTHER, length));
  const at = primary.findIndex((byte, i) => byte !== secondary[i]);
  const given = record({
    primaryFrame: primary,
    secondaryFrame: secondary,
    detail: "byte 4 of 8 differs: 0xf1 on the primary, 0x8d on the secondary",
  });
  if (at >= 0) given.difference = { primaryFrameOffset: at, secondaryFrameOffset: at };
  return given;
}

/** Whether two secret bytes stand in a row, raw or in hexadecimal with anything or nothing between. */
function leaks(output: Uint8Array | string): boolean {
  if (typeof output !== "string") {
    for (let i = 0; i + 1 < output.length; i++) {
      if (isSecret(output[i]!) && isSecret(output[i + 1]!)) return true;
    }
    return false;
  }
  const hex = [...new Set([...SECRET, ...OTHER])].map((byte) => byte.toString(16)).join("|");
  const pattern = new RegExp(`0x(${hex})|(${hex})[ :\\][]*(${hex})`, "i");
  return pattern.test(output);
}

function isSecret(byte: number): boolean {
  return SECRET.includes(byte) || OTHER.includes(byte);
}

/** Every base64 string in a JSON value, as bytes. */
function framesIn(json: unknown): Uint8Array[] {
  const { primaryFrame, secondaryFrame } = json as Record<string, string>;
  return [primaryFrame, secondaryFrame].filter((s) => s !== undefined).map((s) => Buffer.from(s, "base64"));
}

describe.each(Object.keys(FRAMES))("%s", (name) => {
  test.each([2, 40, 1400, 3000])("with %d bytes of payload", (length) => {
    let given = secretRecord(FRAMES[name]!, length);
    const cutPrimary = keepFrame(given.primaryFrame!, given.difference?.primaryFrameOffset);
    const cutSecondary = keepFrame(given.secondaryFrame!, given.difference?.secondaryFrameOffset);
    given = { ...given, primaryFrame: cutPrimary.bytes, secondaryFrame: cutSecondary.bytes };
    if (cutPrimary.cut !== undefined) given.primaryCut = cutPrimary.cut;
    if (cutSecondary.cut !== undefined) given.secondaryCut = cutSecondary.cut;
    // The test itself: unredacted, all of these show it.
    expect(leaks(given.primaryFrame!)).toBe(true);
    expect(leaks(explain(given))).toBe(true);
    expect(leaks(writePcapng([given]))).toBe(true);

    const hidden = redact(given);
    expect(leaks(hidden.primaryFrame!)).toBe(false);
    expect(leaks(hidden.secondaryFrame!)).toBe(false);
    expect(leaks(explain(given, { redact: true }))).toBe(false);
    expect(leaks(explain(hidden, { color: true }))).toBe(false);
    expect(leaks(JSON.stringify(explanationOf(hidden)))).toBe(false);
    expect(leaks(writePcapng([hidden]))).toBe(false);
    const json = recordToJson(hidden, { frames: true });
    expect(leaks(JSON.stringify(json))).toBe(false);
    for (const frame of framesIn(json)) expect(leaks(frame)).toBe(false);
    // What may be told is still told.
    expect(frameBytesOf(primaryOf(hidden)!)).toBe(frameBytesOf(primaryOf(given)!));
    expect(hidden.primaryFrame!.length).toBeGreaterThanOrEqual(14);
    expect(redact(hidden)).toEqual(hidden);
  });
});

test("a checksum from which one byte of payload could be computed does not stay", () => {
  const cases = { tcp: 50, udp: 40, icmp: 36, icmpv6: 56, sctp: 42 };
  for (const [name, offset] of Object.entries(cases)) {
    const given = secretRecord(FRAMES[name]!, 1);
    expect(leaks(given.primaryFrame!.slice(offset, offset + 2))).toBe(true);
    const kept = redact(given).primaryFrame!;
    expect([...kept.slice(offset, offset + 2)]).toEqual([0, 0]);
    expect(kept.slice(0, offset)).toEqual(given.primaryFrame!.slice(0, offset));
  }
});

test("headers stay as they are", () => {
  const frame = tcp({ payload: "secret", options: timestamps(7, 9), seq: 1234, vlans: [5] });
  const hidden = redact(record({ primaryFrame: frame })).primaryFrame!;
  expect(hidden).toEqual(frame.slice(0, 18 + 20 + 32));
  expect(layoutOf(hidden, frame.length)).toMatchObject({ headerBytes: 70, protocol: 6, transportOffset: 38 });
});

test("text of the comparer keeps its words and loses bytes", () => {
  expect(redactText("sequence 2000 differs: 0x61 on the primary, 0x62 on the secondary")).toBe(
    "sequence 2000 differs: 0x.. on the primary, 0x.. on the secondary",
  );
  expect(redactText('the primary sent "GET /secret" (47 45 54 20)')).toBe('the primary sent ".." (..)');
  expect(redactText("the primary sent 27 bytes, the secondary 28")).toBe(
    "the primary sent 27 bytes, the secondary 28",
  );
  expect(redactText("the SYNs offer different options: MSS 1460, window scale 7 on the primary")).toContain(
    "1460",
  );
});

describe("every way out of the store", () => {
  let directory: string;
  let store: DivergenceStore;
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), "colo-test-redact-"));
    store = new DivergenceStore({ path: join(directory, "divergences.db") });
    store.add({ ...secretRecord(FRAMES.udp!, 500), flow: { ...record().flow, source: GUEST } });
  });
  afterEach(() => {
    store.close();
    rmSync(directory, { recursive: true, force: true });
  });

  const paths = [
    "/v1/divergences?frames=1",
    "/v1/divergences/1",
    "/v1/divergences/1.pcapng",
    "/v1/divergences.pcapng",
    "/v1/divergences/top",
  ];
  test.each(paths)("%s", async (path) => {
    const url = new URL(path, "http://127.0.0.1");
    const open = divergenceRoutes(store)(url);
    expect(leaksIn(await open!.bytes())).toBe(!path.endsWith("top"));

    const closed = divergenceRoutes(store, { payload: false })(url);
    expect(leaksIn(await closed!.bytes())).toBe(false);
    url.searchParams.set("redact", "1");
    const asked = divergenceRoutes(store)(url);
    expect(leaksIn(await asked!.bytes())).toBe(false);
    // An interface that hides payload cannot be talked out of it.
    url.searchParams.set("redact", "0");
    const refused = divergenceRoutes(store, { payload: false })(url);
    expect(leaksIn(await refused!.bytes())).toBe(false);
  });

  test("the database, read with --redact", async () => {
    store.flush();
    const divergences = divergencesOfDatabase(store.path, true);
    const [listed] = await divergences.list({ frames: true });
    for (const shown of [listed!, await divergences.get(1)]) {
      expect(leaks(shown.primaryFrame!)).toBe(false);
      expect(leaks(shown.secondaryFrame!)).toBe(false);
      expect(leaks(shown.detail)).toBe(false);
    }
    divergences.close();
  });

  /** Raw, as text, and in what is base64 there. */
  function leaksIn(body: Uint8Array): boolean {
    const asText = new TextDecoder("latin1").decode(body);
    if (!asText.startsWith("{")) return leaks(body);
    const json = JSON.parse(asText);
    const records = json.divergences ?? [json];
    return leaks(asText) || records.some((one: unknown) => framesIn(one).some(leaks));
  }
});

test("text in a payload does not show either", () => {
  const secret = "Date: the-password-is-swordfish";
  const frame = tcp({ payload: text(secret) });
  const given = record({
    primaryFrame: frame,
    secondaryFrame: frame,
    detail: `the line "${secret}" differs`,
  });
  given.difference = { primaryFrameOffset: 60, secondaryFrameOffset: 60 };
  expect(explain(given)).toContain("Date:");
  for (const word of ["Date", "password", "swordfish"]) {
    expect(explain(given, { redact: true })).not.toContain(word);
    expect(JSON.stringify(recordToJson(redact(given), { frames: true }))).not.toContain(word);
    expect(new TextDecoder("latin1").decode(writePcapng([redact(given)]))).not.toContain(word);
  }
});
