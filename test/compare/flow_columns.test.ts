/**
 * The table in src/compare/flow_table.ts says which file changes which column of a flow; the code keeps to
 * it.
 */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const FOLDER = join(import.meta.dir, "../../src/compare");
/** Everybody changes bits of their own. */
const SHARED = "flags";

const source = (file: string): string => readFileSync(join(FOLDER, file), "utf8");

const columns = [...source("flow_table.ts").matchAll(/^ {2}readonly (\w+): (?:Int32|Float64)Array;$/gm)].map(
  ([, name]) => name as string,
);

/** The files that assign to an element of the column. */
function writersOf(column: string): string[] {
  const write = new RegExp(`\\bflows\\.${column}\\[\\w+\\]\\s*(?:=[^=]|[-+|&]=|\\+\\+|--)`);
  return readdirSync(FOLDER)
    .filter((file) => write.test(source(file)))
    .map((file) => file.replace(/\.ts$/, ""))
    .sort();
}

/** The rows of the table: columns, then files. */
function documented(): Map<string, string[]> {
  const rows = source("flow_table.ts").matchAll(/^ \* {5}(\w+(?:, \w+)*) {2,}(\w+(?:, \w+)*)$/gm);
  const table = new Map<string, string[]>();
  for (const [, names, files] of rows) {
    for (const name of names!.split(", ")) table.set(name, files!.split(", ").sort());
  }
  return table;
}

test("each column of a flow is changed by the files that the table names, and by no other", () => {
  const table = documented();
  const changed = columns.filter((column) => column !== SHARED);
  expect(changed.length).toBeGreaterThan(20);
  expect([...table.keys()].sort()).toEqual([...changed].sort());
  for (const column of changed) expect([column, writersOf(column)]).toEqual([column, table.get(column)!]);
});
