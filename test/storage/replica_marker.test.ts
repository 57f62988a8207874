/** What the images of a host are a replica of, from a file that may not be what an agent wrote. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ReplicaMarker } from "../../src/storage/replica_marker.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-marker-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

const DISKS = { disk0: { image: "/images/db1.raw", bytes: 1 << 20 } };
const GOOD = { vm: "db1", generation: 7, disks: DISKS };

test("the generation of these images, until the marker is removed", () => {
  const marker = new ReplicaMarker(directory, "db1");
  expect(marker.generationOf(DISKS)).toBeUndefined();
  marker.write(7, DISKS);
  expect(new ReplicaMarker(directory, "db1").generationOf(DISKS)).toBe(7);
  expect(marker.generationOf({ disk0: { ...DISKS.disk0, bytes: 2 << 20 } })).toBeUndefined();
  expect(marker.generationOf({ ...DISKS, disk1: DISKS.disk0 })).toBeUndefined();
  marker.remove();
  expect(marker.generationOf(DISKS)).toBeUndefined();
});

test.each<[string, unknown]>([
  ["an empty file", ""],
  ["half a file", '{"vm":"db1","generation":7'],
  ["null", null],
  ["a list", [GOOD]],
  ["another VM's", { ...GOOD, vm: "db2" }],
  ["no generation", { vm: "db1", disks: DISKS }],
  ["a generation of text", { ...GOOD, generation: "7" }],
  ["a negative generation", { ...GOOD, generation: -1 }],
  ["a fraction", { ...GOOD, generation: 7.5 }],
  ["disks in a list", { ...GOOD, disks: [DISKS.disk0] }],
  ["a disk without its length", { ...GOOD, disks: { disk0: { image: "/images/db1.raw" } } }],
])("%s counts as no marker", (_, content) => {
  const text = typeof content === "string" ? content : JSON.stringify(content);
  writeFileSync(join(directory, "replica-db1.json"), text);
  expect(new ReplicaMarker(directory, "db1").generationOf(DISKS)).toBeUndefined();
});
