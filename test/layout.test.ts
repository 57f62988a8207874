/**
 * What TypeScript knows of the BPF programs, against the programs: offsets and enumerators by way of the type
 * information in the compiled object, names of maps and programs as they are there, numbers as bpf/colo.h
 * defines them.
 */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { PROGRAMS } from "../src/ffi/data_plane.ts";
import * as layout from "../src/ffi/layout.ts";
import { marksOf } from "../src/ffi/marks.ts";
import { PINNED_MAPS } from "../src/ffi/pinned_maps.ts";

const OBJECT = join(import.meta.dir, "../build/colo.bpf.o");

interface BtfType {
  id: number;
  kind: string;
  name: string;
  size?: number;
  members?: { name: string; bits_offset: number }[];
  values?: { name: string; val: number }[];
  vars?: { type_id: number }[];
  linkage?: string;
  nr_elems?: number;
  type_id?: number;
}

const dump = Bun.spawnSync(["bpftool", "-j", "btf", "dump", "file", OBJECT]);
if (dump.exitCode !== 0) throw new Error(`bpftool cannot read ${OBJECT}: ${dump.stderr}`);
const types = (JSON.parse(dump.stdout.toString()) as { types: BtfType[] }).types;

function find(kind: string, name: string): BtfType {
  const found = types.find((type) => type.kind === kind && type.name === name);
  if (found === undefined) throw new Error(`The object's type information has no ${name}.`);
  return found;
}

/** Member -> byte offset. */
function members(name: string): Record<string, number> {
  const { members } = find("STRUCT", name);
  return Object.fromEntries(members!.map((member) => [member.name, member.bits_offset / 8]));
}

/** Enumerators without the prefix, in the order of their values. */
function enumerators(name: string, prefix: string): Record<string, number> {
  const { values } = find("ENUM", name);
  return Object.fromEntries(values!.map(({ name, val }) => [name.replace(prefix, ""), val]));
}

test.each([
  ["colo_state", layout.STATE, layout.STATE_BYTES],
  ["colo_settings", layout.SETTINGS, layout.SETTINGS_BYTES],
  ["colo_vnet_hdr", layout.VNET, layout.VNET_BYTES],
  ["colo_record", layout.RECORD, layout.RECORD_HEADER_BYTES],
  ["colo_connection_key", layout.CONNECTION_KEY, layout.CONNECTION_KEY_BYTES],
  ["colo_connection", layout.CONNECTION, layout.CONNECTION_BYTES],
  ["colo_live_frame", layout.LIVE_FRAME, layout.LIVE_FRAME_ENTRY_BYTES],
  ["colo_live_list", layout.LIVE_LIST, layout.LIVE_LIST_BYTES],
])("struct %s", (name, offsets, bytes) => {
  expect(offsets as Record<string, number>).toEqual(members(name));
  expect(find("STRUCT", name).size).toBe(bytes);
});

test.each([
  ["colo_role", "COLO_ROLE_", layout.ROLE],
  ["colo_source", "COLO_SOURCE_", layout.SOURCE],
  ["colo_sleep", "COLO_SLEEP_", layout.SLEEP],
  ["colo_connection_flag", "COLO_CONNECTION_", layout.CONNECTION_FLAG],
])("enum %s", (name, prefix, values) => {
  expect(values as Record<string, number>).toEqual(enumerators(name, prefix));
});

test("enum colo_counter", () => {
  const { COLO_COUNTERS, ...counters } = enumerators("colo_counter", "COLO_COUNT_");
  const names = Object.keys(counters).map((name) => name.toLowerCase());
  expect([...layout.COUNTER_NAMES] as string[]).toEqual(names);
  expect(Object.values(counters)).toEqual(names.map((_, i) => i));
  expect(COLO_COUNTERS).toBe(names.length);
});

test("what is sent of a record is the virtio_net_hdr and the frame right behind it", () => {
  expect(layout.RECORD_SEND_OFFSET).toBe(layout.RECORD.vnet);
  expect(layout.RECORD_HEADER_BYTES).toBe(layout.RECORD.vnet + layout.VNET_BYTES);
});

test("the numbers that are no types", () => {
  const header = readFileSync(join(import.meta.dir, "../bpf/colo.h"), "utf8");
  const defined = Object.fromEntries(
    [...header.matchAll(/^#define (\w+) (\d+)/gm)].map(([, name, value]) => [name, Number(value)]),
  );
  expect(defined).toEqual({
    COLO_WORKERS_MAX: layout.WORKERS_MAX,
    COLO_BULK_BYTES: layout.BULK_BYTES,
    COLO_RECORD_HEADER_BYTES: layout.RECORD_HEADER_BYTES,
    COLO_RECORD_SEND_OFFSET: layout.RECORD_SEND_OFFSET,
    COLO_LIVE_FRAME_MAX: layout.LIVE_FRAME_BYTES_MAX,
    COLO_LIVE_LIST_MAX: layout.LIVE_LIST_MAX,
    COLO_LIVE_START_BYTES: layout.LIVE_START_BYTES,
    VIRTIO_NET_HDR_F_NEEDS_CSUM: layout.VNET_NEEDS_CHECKSUM,
  });
});

test("the kinds of segmentation", () => {
  const source = readFileSync(join(import.meta.dir, "../bpf/record.h"), "utf8");
  const defined = [...source.matchAll(/^#define VIRTIO_NET_HDR_GSO_(\w+) (\w+)/gm)];
  expect(Object.fromEntries(defined.map(([, name, value]) => [name, Number(value)]))).toEqual(
    Object.fromEntries(Object.entries(layout.VNET_GSO).filter(([name]) => name !== "NONE")),
  );
});

test("every map is pinned, but for those that hold nothing after a run", () => {
  const variables = new Set(find("DATASEC", ".maps").vars!.map(({ type_id }) => type_id));
  const names = types.filter(({ id }) => variables.has(id)).map(({ name }) => name);
  expect(names.sort()).toEqual([...PINNED_MAPS, "live_lists", "live_frames"].sort());
});

test("every program is loaded", () => {
  const names = types.filter(({ kind, linkage }) => kind === "FUNC" && linkage === "global");
  expect(names.map(({ name }) => name).sort()).toEqual([...PROGRAMS].sort());
});

test("no two marks are the same, whatever the tunnel ids", () => {
  const marks = Array.from({ length: 256 }, (_, tunnelId) => Object.values(marksOf(tunnelId))).flat();
  expect(marks).not.toContain(0);
  expect(new Set(marks).size).toBe(3 * 256);
  expect(marks.every((mark) => mark < 2 ** 32)).toBe(true);
});
