import { expect, test } from "bun:test";
import { BusyWait } from "../../src/datapath/busy_wait.ts";

test("short waits make it look longer, up to 50 us; what it catches changes nothing", () => {
  const wait = new BusyWait();
  const looks: number[] = [];
  for (let i = 0; i < 6; i++) {
    looks.push(wait.ns);
    wait.waited(60_000);
  }
  expect(looks).toEqual([0, 10_000, 20_000, 40_000, 50_000, 50_000]);
  wait.waited(30_000);
  expect(wait.ns).toBe(50_000);
});

test("a long wait ends the looking, and another long one does not begin it", () => {
  const wait = new BusyWait();
  for (let i = 0; i < 6; i++) wait.waited(20_000);
  expect(wait.ns).toBeGreaterThan(0);
  wait.waited(1_000_000);
  expect(wait.ns).toBe(0);
  wait.waited(1_000_000);
  expect(wait.ns).toBe(0);
});
