/** docs/configuration.md is the schema in words: every key has a description, and the page is current. */
import { expect, test } from "bun:test";
import { configurationTables, EXAMPLE, PAGE, withMadeParts } from "../../scripts/lib/configuration_docs.ts";
import { parseConfig } from "../../src/config/load.ts";

const rows = configurationTables().flatMap((table) => table.rows);

test("every key has a description, a type and a default", () => {
  expect(rows.filter(({ meaning }) => !/[^.]\.$/.test(meaning)).map(({ path }) => path)).toEqual([]);
  expect(rows.filter(({ type }) => type === "").map(({ path }) => path)).toEqual([]);
  expect(rows.filter((row) => row.default === "").map(({ path }) => path)).toEqual([]);
});

test("every table has a description", () => {
  expect(configurationTables().filter(({ meaning }) => meaning === "")).toEqual([]);
});

test("the tables are all there, nested ones and alternatives too", () => {
  const paths = rows.map(({ path }) => path);
  for (const path of [
    "agent.name",
    "arbiter.url",
    "arbiter.endpoints",
    "heartbeat.lease_ms",
    "vm.disk.path",
    "vm.nic.tap",
    "vm.qemu.arguments",
    "vm.checkpoint.period_ms",
  ]) {
    expect(paths).toContain(path);
  }
});

test("the page is current: scripts/configuration-docs changes nothing", async () => {
  const page = await Bun.file(PAGE).text();
  expect(withMadeParts(page, await Bun.file(EXAMPLE).text())).toBe(page);
});

test("the example can be used, and derived defaults are as the page says", async () => {
  const config = parseConfig(await Bun.file(EXAMPLE).text(), EXAMPLE);
  const [vm] = config.vm;
  expect(config.agent.api).toEqual({ host: "127.0.0.1", port: 7401 });
  expect(vm?.nic[0]).toMatchObject({ tunnel_id: 1, tunnel_port: 4790, proxy_port: 7502 });
  expect(vm?.disk[0]).toMatchObject({ name: "disk0", quorum_node: "colo-disk0", export_node: "disk0" });
  expect(vm?.managed?.disks[0]).toMatchObject({ format: "raw", device: "virtio-blk" });
  expect(vm?.managed?.directory).toBe("/var/lib/colo-agent/vm/db1");
});
