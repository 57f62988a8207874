/**
 * The copy of the disks to a replica: its progress, its limit, its end by command and by the loss of either
 * agent; and that nothing of it is left on either host afterwards.
 */
import { describe, expect, test } from "bun:test";
import { readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Lab } from "../../src/lab/lab.ts";
import { GUEST_IPV4, type HostLetter, inNamespace } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { run } from "../bpf/network.ts";
import { total } from "../metrics_text.ts";
import { until } from "../until.ts";
import { labUnderTest, operate } from "./lab_under_test.ts";

const TIMEOUT_MS = 60_000;
const SLOW = 4 << 20;
/** Half a cluster a second, for a copy of few clusters. */
const SLOWEST = 32 << 10;
const DISK_BYTES = 64 << 20;

async function command(lab: Lab, host: HostLetter, ...words: string[]): Promise<string> {
  const { out, error, exitCode } = await operate(lab, host, ...words);
  if (exitCode !== 0) throw new Error(`${words.join(" ")}: ${error}`);
  return out;
}

/** All that a copy could leave behind in a host's QEMU, kernel and folders. */
async function belongings(lab: Lab, letter: HostLetter): Promise<Record<string, string[]>> {
  const { namespaces } = lab;
  const host = lab.host(letter);
  const inside = (...words: string[]) => run(...inNamespace(namespaces[letter]), ...words).split("\n");
  const qmp = await QmpClient.connect(host.qmp);
  try {
    const list = async (query: string, key: string, words?: Record<string, unknown>) =>
      (await qmp.execute<Record<string, unknown>[]>(query, words)).map((one) => String(one[key])).sort();
    const nodes = await qmp.execute<{ "node-name": string; "dirty-bitmaps"?: { name?: string }[] }[]>(
      "query-named-block-nodes",
      { flat: true },
    );
    return {
      jobs: await list("query-jobs", "id"),
      blockJobs: await list("query-block-jobs", "device"),
      exports: await list("query-block-exports", "id"),
      objects: await list("qom-list", "name", { path: "/objects" }),
      chardevs: (await list("query-chardev", "label")).filter((label) => !label.startsWith("compat_monitor")),
      // QEMU numbers the nodes that nobody has named.
      nodes: nodes.map((node) => node["node-name"].replace(/^#block\d+$/, "#block")).sort(),
      // What was changed since the replica's loss is to be kept.
      bitmaps: nodes
        .flatMap((node) => (node["dirty-bitmaps"] ?? []).map(({ name }) => name ?? ""))
        .filter((name) => !/^colo-\d+-\d+$/.test(name)),
      links: inside("ip", "-o", "link").map((line) => line.split(": ")[1] ?? ""),
      filters: inside("tc", "filter", "show", "dev", "tap0", "ingress").map((line) =>
        line.replace(/ id \d+.*/, "").replace(/\[\d+\]/, ""),
      ),
      qdiscs: inside("tc", "qdisc", "show"),
      tables: inside("nft", "list", "tables"),
      files: readdirSync(host.directory)
        .filter((name) => !/\.log$|^agent\.toml$|sqlite/.test(name))
        .sort(),
      temporary: readdirSync(tmpdir()).filter((name) => name.startsWith("colo-agent")),
      pinned: readdirSync(`/sys/fs/bpf/colo-agent/${lab.host(letter).netns.replace(/^colo-/, "")}`),
      // Others may be at work on this machine.
      namespaces: run("ip", "netns", "list")
        .split("\n")
        .filter((name) => name.startsWith("colo-test-resync"))
        .sort(),
    };
  } finally {
    qmp.close();
  }
}

/** The other host's images are taken for no replica: all is to be copied. */
function forget(lab: Lab, letter: HostLetter): void {
  rmSync(join(lab.host(letter).directory, "vm", "replica-vm1.json"));
}

describe("the copy of the disks to a replica", () => {
  const lab = labUnderTest("resync", {});

  const untilCopying = async () => {
    await lab().waitFor(
      "a copy is under way",
      ({ a }) => (a?.resync?.copiedBytes ?? 0) > 0 && a!.resync!.copiedBytes < DISK_BYTES / 2,
      TIMEOUT_MS,
    );
    return (await lab().agentStatus("a"))!.resync!;
  };
  const untilProtected = () =>
    lab().waitFor("protected", ({ a, b }) => a?.phase === "protected" && b?.phase === "standby", TIMEOUT_MS);
  const untilBothWait = () =>
    lab().waitFor(
      "a runs it, b waits",
      ({ a, b }) => a?.phase === "alone" && b?.phase === "waiting",
      TIMEOUT_MS,
    );

  test(
    "shows its progress, keeps its limit, is ended at once, and leaves nothing behind",
    async () => {
      using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 100_000 });
      using disk = new LabTraffic(lab(), "disk", { host: GUEST_IPV4, pauseMs: 20 });
      await disk.until("blocks", ({ answers }) => answers > 10, TIMEOUT_MS);
      // As it is when a VM has been protected and is so no more.
      await command(lab(), "a", "unprotect", "vm1");
      await untilBothWait();
      const before = { a: await belongings(lab(), "a"), b: await belongings(lab(), "b") };
      const after = async () => ({ a: await belongings(lab(), "a"), b: await belongings(lab(), "b") });

      // Ended by command in the middle.
      forget(lab(), "b");
      await command(lab(), "a", "tune", "vm1", "--resync-bytes-per-second", String(SLOW));
      await command(lab(), "a", "protect", "vm1");
      const first = await untilCopying();
      expect(first.disks.map(({ disk, follows }) => ({ disk, follows }))).toEqual([
        { disk: "disk0", follows: false },
      ]);
      expect(first.totalBytes).toBeGreaterThanOrEqual(DISK_BYTES);
      const scrape = await lab().metrics("a");
      expect(total(scrape, "colo_resync_total_bytes")).toBeGreaterThanOrEqual(DISK_BYTES);
      // QEMU counts in large pieces; without the limit all would be there at once.
      await lab().waitFor(
        "it goes on",
        ({ a }) => (a?.resync?.copiedBytes ?? 0) > first.copiedBytes,
        TIMEOUT_MS,
      );
      expect((await lab().agentStatus("a"))!.resync!.copiedBytes).toBeLessThan(DISK_BYTES);
      await command(lab(), "a", "unprotect", "vm1");
      await untilBothWait();
      expect((await lab().agentStatus("a"))!.resync).toBeUndefined();
      expect(await after()).toEqual(before);

      // The other host is lost in the middle.
      await command(lab(), "a", "protect", "vm1");
      await untilCopying();
      await lab().kill("b", "both");
      await lab().waitFor("a runs it alone", ({ a }) => a?.phase === "alone", TIMEOUT_MS);
      await command(lab(), "a", "unprotect", "vm1");
      await lab().bringBack("b");
      await untilBothWait();
      expect(await after()).toEqual(before);

      // The primary's own agent is lost in the middle; its successor tidies up and, since the limit has gone
      // with it, copies.
      await command(lab(), "a", "protect", "vm1");
      await untilCopying();
      await lab().kill("a", "agent");
      await lab().bringBack("a");
      await untilProtected();
      await command(lab(), "a", "unprotect", "vm1");
      await untilBothWait();
      expect(await after()).toEqual(before);
      await connection.finish();
      await disk.finish();
    },
    4 * TIMEOUT_MS,
  );

  test(
    "a replica that comes back gets only what has changed, also after an attempt that failed",
    async () => {
      using disk = new LabTraffic(lab(), "disk", { host: GUEST_IPV4, pauseMs: 20 });
      await command(lab(), "a", "protect", "vm1");
      await untilProtected();
      await disk.until("blocks", ({ answers }) => answers > 20, TIMEOUT_MS);
      await lab().kill("b", "both");
      const blocks = disk.last!.answers;
      await disk.until("blocks go on", ({ answers }) => answers > blocks + 100, TIMEOUT_MS);
      // An attempt that ends in the middle.
      await command(lab(), "a", "tune", "vm1", "--resync-bytes-per-second", String(SLOWEST));
      await lab().bringBack("b");
      await untilCopying();
      await lab().kill("b", "both");
      await lab().waitFor("a runs it alone", ({ a }) => a?.phase === "alone", TIMEOUT_MS);
      await command(lab(), "a", "tune", "vm1", "--resync-bytes-per-second", "0");
      await lab().bringBack("b");
      await untilProtected();
      const log = await Bun.file(join(lab().host("a").directory, "agent.log")).text();
      const copies = [...log.matchAll(/"diskBytes":(\d+),"disks":1,"wholeDisks":(\d)/g)];
      const [, bytes, whole] = copies.at(-1)!;
      expect(whole).toBe("0");
      expect(Number(bytes)).toBeGreaterThan(0);
      expect(Number(bytes)).toBeLessThan(DISK_BYTES / 4);
      await disk.finish();
    },
    2 * TIMEOUT_MS,
  );

  test(
    "a period that is changed holds at once",
    async () => {
      const count = async () => total(await lab().metrics("a"), "colo_checkpoints_total", 'cause="periodic"');
      const before = await count();
      await command(lab(), "a", "tune", "vm1", "--period-ms", "200");
      await until("three more periods are over", async () => (await count()) >= before + 3, { pollMs: 100 });
      expect((await lab().agentStatus("a"))!.tuning.periodMs).toBe(200);
      await expect(command(lab(), "a", "tune", "vm1", "--period-ms", "1")).rejects.toThrow(/from 100 to/);
    },
    TIMEOUT_MS,
  );
});
