/**
 * docs/operate.md is about this program: it has every phase, and the reasons that it explains are ones that
 * the agent gives.
 */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { Glob } from "bun";
import { PHASES } from "../../src/failover/state.ts";

const ROOT = join(import.meta.dir, "../..");
const page = await Bun.file(join(ROOT, "docs/operate.md")).text();

/** First cells of the table under a heading of the page. */
function firstCells(heading: string): string[] {
  const section = page.split(/^## /m).find((text) => text.startsWith(heading)) ?? "";
  const rows = section.split("\n").filter((line) => line.startsWith("| "));
  return rows.slice(2).map((row) => row.split(/(?<!\\)\|/)[1]?.trim() ?? "");
}

/** Parts of a reason that stand in the program as they are: what is between the values that change. */
function constantParts(reason: string): string[] {
  return reason
    .replaceAll("\\", "")
    .split(/…|`[A-Z]+`|\b[NM]\b|; |\(|\)|:|`/)
    .map((part) => part.trim())
    .filter((part) => part.length >= 8);
}

/** The program's sources, with literals that are put together from several lines in one piece. */
async function sources(): Promise<string> {
  const texts: string[] = [];
  for (const file of new Glob("src/**/*.ts").scanSync(ROOT))
    texts.push(await Bun.file(join(ROOT, file)).text());
  return texts.join("\n").replace(/["'`] \+\s*["'`]/g, "");
}

test("every phase is explained", () => {
  expect(firstCells("Reading the status").map((cell) => cell.replaceAll("`", ""))).toEqual(
    Object.keys(PHASES),
  );
});

test("each reason is one that the agent gives", async () => {
  const reasons = [...firstCells("The VM is not protected"), ...firstCells("This host has stopped")];
  expect(reasons.length).toBeGreaterThan(20);
  const text = await sources();
  const strange = reasons.flatMap(constantParts).filter((part) => !text.includes(part));
  expect(strange).toEqual([]);
});
