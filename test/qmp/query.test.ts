/** Answers of a QEMU that are not what its schema says. A stand-in for QEMU's connection gives them. */
import { describe, expect, test } from "bun:test";
import type { z } from "zod";
import { QmpAnswerError, QmpCommandError } from "../../src/qmp/errors.ts";
import {
  chardevInfo,
  coloStatus,
  jobs,
  migrateInfo,
  namedBlockNodes,
  qomEntries,
  query,
  runState,
  yankInstances,
} from "../../src/qmp/query.ts";

const giving = (answer: unknown) => ({ execute: (async () => answer) as never });

const JOB = { id: "a", type: "mirror", status: "running", "current-progress": 1, "total-progress": 2 };
const NODE = { "node-name": "q", drv: "quorum", file: "", ro: false };

const good: [string, z.ZodType, unknown, unknown][] = [
  ["query-status", runState, { running: true, status: "colo" }, { running: true, status: "colo" }],
  ["query-migrate", migrateInfo, {}, { status: "none" }],
  ["query-colo-status", coloStatus, { mode: "primary", reason: "none" }, { mode: "primary" }],
  ["query-named-block-nodes", namedBlockNodes, [NODE], [{ "node-name": "q", drv: "quorum", file: "" }]],
  ["query-jobs", jobs, [JOB], [{ id: "a", status: "running", "current-progress": 1, "total-progress": 2 }]],
  ["qom-list", qomEntries, [{ name: "a", type: "child<b>" }], [{ name: "a", type: "child<b>" }]],
  ["query-yank", yankInstances, [{ type: "chardev", id: "c" }], [{ type: "chardev", id: "c" }]],
  ["query-chardev", chardevInfo, [], []],
];
test.each(good)("%s: what is used of a good answer", async (command, schema, answer, used) => {
  expect(await query(giving(answer), schema, command)).toEqual(used);
});

const bad: [string, z.ZodType, unknown][] = [
  ["query-status", runState, {}],
  ["query-status", runState, { running: "yes", status: "running" }],
  ["query-migrate", migrateInfo, { status: 5 }],
  ["query-migrate", migrateInfo, { ram: { transferred: "1" } }],
  ["query-colo-status", coloStatus, { mode: "tertiary" }],
  ["query-named-block-nodes", namedBlockNodes, {}],
  ["query-named-block-nodes", namedBlockNodes, [{ ...NODE, "node-name": undefined }]],
  ["query-named-block-nodes", namedBlockNodes, [{ ...NODE, "dirty-bitmaps": [{ count: 1 }] }]],
  ["query-jobs", jobs, [{ ...JOB, "current-progress": null }]],
  ["qom-list", qomEntries, [{ name: "a" }]],
  ["query-yank", yankInstances, [{ type: "chardev" }]],
  ["query-chardev", chardevInfo, [{ label: "a" }]],
];
describe.each(bad)("%s", (command, schema, answer) => {
  test(`${JSON.stringify(answer)} is an error that names the command and the place`, async () => {
    const asked = query(giving(answer), schema, command);
    await expect(asked).rejects.toBeInstanceOf(QmpAnswerError);
    await expect(asked).rejects.toThrow(`QEMU answered ${command} with something else`);
  });
});

test("QEMU's own refusal stays what it is", async () => {
  const refusal = new QmpCommandError("query-jobs", undefined, "GenericError", "no");
  const refusing = { execute: (async () => Promise.reject(refusal)) as never };
  await expect(query(refusing, jobs, "query-jobs")).rejects.toBe(refusal);
});
