/**
 * A BPF map by its descriptor: entries one by one and in batches, and the memory that they travel through.
 */
import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { BpfMap, mapInfo } from "../../src/ffi/bpf_map.ts";
import { BpfObject } from "../../src/ffi/bpf_object.ts";
import { PROGRAMS } from "../../src/ffi/data_plane.ts";
import { CONNECTION, CONNECTION_BYTES, CONNECTION_KEY, CONNECTION_KEY_BYTES } from "../../src/ffi/layout.ts";
import { OBJECT } from "../bpf/data_plane_under_test.ts";

const ENTRIES = 10;
const BATCH = 4;

let object: BpfObject;
let map: BpfMap;

beforeAll(() => {
  object = BpfObject.open(OBJECT);
  object.load(PROGRAMS);
  map = new BpfMap(object.mapFd("connections"), "the connections", { batch: BATCH });
});

afterAll(() => {
  map.close();
  object.close();
});

/** Makes the map's key that of this client port. */
function select(port: number): void {
  map.bytes.fill(0, map.key, map.key + CONNECTION_KEY_BYTES);
  map.view.setUint16(map.key + CONNECTION_KEY.client_port_be, port);
}

function put(port: number, epoch: number): void {
  select(port);
  map.bytes.fill(0, map.value, map.value + CONNECTION_BYTES);
  map.view.setUint32(map.value + CONNECTION.epoch, epoch, true);
  map.update("Cannot write an entry");
}

/** Epoch of the entry of this port; undefined if there is none. */
function epochOf(port: number): number | undefined {
  select(port);
  return map.lookup() ? map.view.getUint32(map.value + CONNECTION.epoch, true) : undefined;
}

beforeEach(() => {
  map.forEach((key) => {
    map.take(key);
  });
  for (let port = 0; port < ENTRIES; port++) put(port, 100 + port);
});

test("an entry is found by its key, and no other", () => {
  expect(epochOf(3)).toBe(103);
  expect(epochOf(ENTRIES)).toBeUndefined();
  put(3, 7);
  expect(epochOf(3)).toBe(7);
});

test("all entries are visited once, in several batches", () => {
  const seen: [number, number][] = [];
  map.forEach((key, value) => {
    const port = map.view.getUint16(key + CONNECTION_KEY.client_port_be);
    seen.push([port, map.view.getUint32(value + CONNECTION.epoch, true)]);
  });
  seen.sort(([a], [b]) => a - b);
  expect(seen).toEqual(Array.from({ length: ENTRIES }, (_, port) => [port, 100 + port]));
});

test("an entry that is taken is gone, and can be put back unless there is a newer one", () => {
  select(5);
  expect(map.take()).toBe(true);
  expect(map.view.getUint32(map.value + CONNECTION.epoch, true)).toBe(105);
  expect(map.take()).toBe(false);
  map.restore(map.key);
  expect(epochOf(5)).toBe(105);
  // The value of 5 is in the map's memory; 6 has its own.
  select(6);
  map.restore(map.key);
  expect(epochOf(6)).toBe(106);
});

test("a value of a map with one for each CPU has room for all of them", () => {
  const fd = object.mapFd("counters");
  const counters = new BpfMap(fd, "the counters");
  try {
    const { valueBytes } = mapInfo(fd);
    expect(counters.valueBytes % valueBytes).toBe(0);
    expect(counters.valueBytes / valueBytes).toBeGreaterThanOrEqual(navigator.hardwareConcurrency);
    counters.view.setUint32(counters.key, 0, true);
    expect(counters.lookup()).toBe(true);
  } finally {
    counters.close();
  }
});

test("after close() each use is an error: the memory is gone", () => {
  const closed = new BpfMap(object.mapFd("connections"), "the connections");
  closed.close();
  closed.close();
  const uses: (() => unknown)[] = [
    () => closed.view,
    () => closed.bytes,
    () => closed.lookup(),
    () => closed.take(),
    () => closed.update("Cannot write an entry"),
    () => closed.restore(0),
    () => closed.forEach(() => {}),
  ];
  for (const use of uses) expect(use).toThrow("The map of the connections has been closed.");
});

test("something that is no map is said to be none", () => {
  expect(() => mapInfo(0)).toThrow("Cannot ask the kernel about a map");
});
