import { expect, test } from "bun:test";
import { KEY_WORDS } from "../../src/compare/flow_key.ts";
import { FlowTable } from "../../src/compare/flow_table.ts";
import { Random } from "../random.ts";

test("adding, finding and removing agree with a Map, in a table that is nearly full", () => {
  const random = new Random(7);
  const table = new FlowTable(64, 99);
  const model = new Map<number, number>();
  const key = new Int32Array(KEY_WORDS);
  const keyOf = (name: number) => {
    key.fill(0);
    key[1] = name & 7;
    key[3] = name >> 3;
    key[7] = 5;
    return key;
  };
  for (let step = 0; step < 20_000; step++) {
    const name = random.below(96);
    const known = model.get(name);
    expect(table.find(keyOf(name))).toBe(known ?? -1);
    if (known !== undefined) {
      if (random.chance(0.4)) {
        table.remove(known);
        model.delete(name);
      }
    } else {
      const flow = table.add(keyOf(name), 0, 0);
      if (model.size === 64) expect(flow).toBe(-1);
      else {
        expect([...model.values()]).not.toContain(flow);
        model.set(name, flow);
      }
    }
    expect(table.size).toBe(model.size);
    if (step % 100 === 0) {
      for (const [name, flow] of model) expect(table.find(keyOf(name))).toBe(flow);
    }
  }
  table.clear();
  for (let name = 0; name < 96; name++) expect(table.find(keyOf(name))).toBe(-1);
});

test("idle flows are collected a few at a time", () => {
  const table = new FlowTable(100, 1);
  const key = new Int32Array(KEY_WORDS);
  for (let i = 0; i < 100; i++) {
    key[1] = i;
    const flow = table.add(key, 0, i);
    table.held[flow] = i % 10 === 0 ? 1 : 0;
  }
  let removed = 0;
  for (let call = 0; call < 10; call++) removed += table.collect(10, 1050, 1000, 1000);
  // Seen at 0 to 50, but for the 6 of them that hold a frame.
  expect(removed).toBe(45);
  expect(table.size).toBe(55);
});
