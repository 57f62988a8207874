/** Every kind of file that must be read or refused, through the real command. */
import { afterAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { SUPPORTED_LINK_TYPES } from "../../src/capture/link_types.ts";
import { pcapVersion } from "../../src/ffi/pcap.ts";
import { concat } from "../compare/frames.ts";
import { CaptureFolder, type CaptureFormat, captureBytes } from "./capture_files.ts";
import { compareCommandLine, reportOf } from "./command.ts";
import { compareFiles } from "./comparison.ts";
import { Conversation, flipped, pattern } from "./conversation.ts";

const folder = new CaptureFolder();
afterAll(() => folder.remove());

const ANSWER = pattern(3_000, 3);
const talk = (answer = ANSWER, version: 4 | 6 = 4) =>
  new Conversation({ version, guestIsn: 9 }).open().guest(answer).close().frames;
const frames = talk();
const reference = folder.capture(frames);

describe("formats", () => {
  const formats: CaptureFormat[] = (["pcap", "pcapng"] as const).flatMap((kind) =>
    [false, true].flatMap((bigEndian) =>
      [false, true].map((nanoseconds) => ({ kind, bigEndian, nanoseconds })),
    ),
  );
  test.each(formats)("%p", async (format) => {
    const same = await compareCommandLine("--json", reference, folder.capture(frames, format));
    expect(same).toMatchObject({ status: 0, stderr: "" });
    expect(reportOf(same)).toMatchObject({ same: true, compared_bytes: ANSWER.length });
    const changed = folder.capture(talk(flipped(ANSWER, 1_234)), format);
    const different = await compareCommandLine("--json", changed, reference);
    expect(different).toMatchObject({ status: 1, stderr: "" });
    expect(reportOf(different).divergences).toMatchObject([{ class: "payload", stream_offset: 1_234 }]);
  });
});

describe("link types", () => {
  const sll = (frame: Uint8Array) =>
    concat(Uint8Array.of(0, 4, 0, 1, 0, 6), frame.subarray(6, 12), Uint8Array.of(0, 0), frame.subarray(12));
  const sll2 = (frame: Uint8Array) =>
    concat(
      frame.subarray(12, 14),
      Uint8Array.of(0, 0, 0, 0, 0, 3, 0, 1, 4, 6),
      frame.subarray(6, 12),
      Uint8Array.of(0, 0),
      frame.subarray(14),
    );
  const bare = (frame: Uint8Array) => frame.subarray(14);
  const family =
    (...bytes: number[]) =>
    (frame: Uint8Array) =>
      concat(Uint8Array.from(bytes), bare(frame));
  const kinds: [string, number, 4 | 6, (frame: Uint8Array) => Uint8Array][] = [
    ["LINUX_SLL", 113, 4, sll],
    ["LINUX_SLL", 113, 6, sll],
    ["LINUX_SLL2", 276, 4, sll2],
    ["LINUX_SLL2", 276, 6, sll2],
    ["RAW", 101, 4, bare],
    ["RAW", 101, 6, bare],
    ["IPV4", 228, 4, bare],
    ["IPV6", 229, 6, bare],
    ["NULL", 0, 4, family(2, 0, 0, 0)],
    ["NULL", 0, 4, family(0, 0, 0, 2)],
    ["NULL", 0, 6, family(30, 0, 0, 0)],
    ["LOOP", 108, 6, family(0, 0, 0, 24)],
  ];
  test.each(kinds)("%s (%d) with IPv%d", (name, linkType, version, wrap) => {
    const ethernet = talk(ANSWER, version);
    const primary = folder.capture(ethernet.map(wrap), { linkType });
    const secondary = folder.capture(ethernet);
    const same = compareFiles(primary, secondary);
    expect(same).toMatchObject({ same: true, compared_bytes: ANSWER.length });
    expect(same.primary.link_type).toBe(name);
    expect(same.secondary.link_type).toBe("EN10MB");
    const changed = folder.capture(talk(flipped(ANSWER, 77), version));
    expect(compareFiles(primary, changed).divergences).toMatchObject([
      { class: "payload", stream_offset: 77 },
    ]);
  });
});

describe("what cannot be compared ends with status 2 and says why", () => {
  const refused = async (says: RegExp, ...args: string[]) => {
    for (const order of [args, [...args.slice(0, -2), ...args.slice(-2).reverse()]]) {
      const result = await compareCommandLine(...order);
      expect(result.stderr).toMatch(says);
      expect(result).toMatchObject({ status: 2, stdout: "" });
    }
  };
  const whole = captureBytes(frames);

  test("a file that is not there", () =>
    refused(/nowhere\.pcap.*no such file/, reference, "/tmp/nowhere.pcap"));
  test("an empty file", () => refused(/is empty/, reference, folder.file(new Uint8Array(0))));
  test("a directory", () => refused(/is a directory/, reference, folder.path));
  test("garbage", () => refused(/unknown file format/, reference, folder.file(pattern(5_000, 99))));
  test("a file header cut off", () =>
    refused(/truncated dump file/, reference, folder.file(whole.subarray(0, 20))));
  test("a capture without frames", () => refused(/has no frames/, reference, folder.capture([])));

  test("a record header cut off", () =>
    refused(
      /beyond frame 1: truncated dump file/,
      reference,
      folder.file(whole.subarray(0, 24 + 16 + frames[0]!.length + 9)),
    ));
  test("a frame cut off at the file's end", () =>
    refused(
      new RegExp(`beyond frame ${frames.length - 1}: truncated dump file`),
      reference,
      folder.file(whole.subarray(0, whole.length - 1)),
    ));
  test("a pcapng block cut off", () =>
    refused(/truncated/, reference, folder.file(captureBytes(frames, { kind: "pcapng" }).slice(0, -40))));
  test("an impossible length in the middle", () => {
    const damaged = whole.slice();
    // The captured length of the second record.
    new DataView(damaged.buffer).setUint32(24 + 16 + frames[0]!.length + 8, 0x7fff_ffff, true);
    return refused(/beyond frame 1: .*invalid packet capture length/, reference, folder.file(damaged));
  });
  test("frames that were cut off when they were captured", () =>
    refused(/frame 1 of .* was cut off .*tcpdump -s 0/, reference, folder.capture(frames, { cutBytes: 8 })));
  test("another link type", () =>
    refused(/link type USB_LINUX.*supported are/, reference, folder.capture(frames, { linkType: 189 })));
  test("a frame shorter than its link header", () =>
    refused(
      /frame 1 of .* has 3 bytes/,
      reference,
      folder.capture([Uint8Array.of(1, 2, 3)], { linkType: 113 }),
    ));
  test("two kinds of interfaces in one pcapng file", () => {
    const first = captureBytes(frames, { kind: "pcapng" });
    const second = captureBytes(frames, { kind: "pcapng", linkType: 113 });
    // The second file without its section header of 28 bytes: one more interface.
    return refused(/one file for each interface/, reference, folder.file(concat(first, second.subarray(28))));
  });
  test("a guest that sends nothing", () =>
    refused(/no frame of the two captures.*198\.18\.7\.7/, "--guest", "198.18.7.7", reference, reference));
  test("a guest that is no address", () =>
    refused(/--guest server: give an IPv4/, "--guest", "server", reference, reference));
  test("a window of nothing", () =>
    refused(/whole number from 1 to 4096/, "--window", "0", reference, reference));
  test("a limit that is no number", () => refused(/whole number/, "--limit", "many", reference, reference));
  test("an unknown option", () => refused(/unknown option/, "--wrong", reference, reference));
  test("a rule that is none", () => refused(/"udp port x"/, "--ignore", "udp port x", reference, reference));
  test("one file only", async () => {
    expect(await compareCommandLine(reference)).toMatchObject({ status: 2, stdout: "" });
  });
});

describe("the command", () => {
  test("says in words what is the same and what differs", async () => {
    const same = await compareCommandLine(reference, reference);
    expect(same).toMatchObject({ status: 0, stderr: "" });
    expect(same.stdout.trimEnd().split("\n").at(-1)).toBe("same");
    expect(same.stdout).toContain("3 000 bytes of payload compared");
    const changed = folder.capture(talk(flipped(ANSWER, 55)));
    const different = await compareCommandLine(reference, changed);
    expect(different.status).toBe(1);
    expect(different.stdout).toContain(
      "1. payload  tcp 198.18.0.2:80 > 198.18.0.9:40000\n   stream offset 55\n",
    );
    expect(different.stdout.trimEnd().split("\n").at(-1)).toBe("different: 1 divergence");
    // The two lines of bytes, and under them a mark at the pair that differs.
    const [primary = "", secondary = "", mark = ""] = different.stdout
      .split("\n")
      .filter((line) => /^ +(P {2}|S {2}|\^\^$)/.test(line));
    const at = mark.indexOf("^^");
    expect(primary.slice(at, at + 2)).toBe(ANSWER[55]!.toString(16).padStart(2, "0"));
    expect(secondary.slice(at, at + 2)).toBe((ANSWER[55]! ^ 0x20).toString(16).padStart(2, "0"));
  });

  test("--help ends with status 0 and tells the exit statuses", async () => {
    const help = await compareCommandLine("--help");
    expect(help.status).toBe(0);
    expect(help.stdout).toContain("0 same, 1 different, 2 error");
  });

  test("docs/compare.md has the shape of the JSON report and the supported link types", async () => {
    const text = await Bun.file(join(import.meta.dir, "../../docs/compare.md")).text();
    const changed = folder.capture(talk(flipped(ANSWER, 55)));
    const report = reportOf(await compareCommandLine("--json", reference, changed));
    const documented = JSON.parse(/```json\n([\s\S]*?)```/.exec(text)?.[1] ?? "{}");
    expect(shapeOf(documented)).toEqual(shapeOf(report));
    expect(text).toContain(SUPPORTED_LINK_TYPES);
  });
});

/** Names and types, without the values. */
function shapeOf(value: unknown): unknown {
  if (Array.isArray(value)) return value.slice(0, 1).map(shapeOf);
  if (typeof value !== "object" || value === null) return typeof value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, shapeOf(item)]));
}

test("libpcap is the system's own", () => {
  expect(pcapVersion()).toMatch(/^libpcap version 1\./);
});
