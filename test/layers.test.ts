/**
 * The layers of src/: every import is held to the table "Layers" of docs/architecture.md. A new arrow is a
 * decision about the design and is made in that table.
 */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { tableRows } from "./tidy/documents.ts";
import { circles, folderOf, importsOf, REPOSITORY, readImports } from "./tidy/imports.ts";

const document = await Bun.file(join(REPOSITORY, "docs/architecture.md")).text();
const imports = await readImports("src");

/** Folder -> the folders it may import, from the lowest layer up. */
const allowed = new Map(
  tableRows(document, "## Layers").map(([folder, , mayImport]) => [
    names(folder as string)[0] as string,
    names(mayImport as string),
  ]),
);

/** The names in code marks: "`ffi`, `host`" -> ["ffi", "host"]. */
function names(cell: string): string[] {
  return [...cell.matchAll(/`([^`]+)`/g)].map((match) => match[1] as string);
}

/** "a -> b" for every import between two folders that the table does not allow. */
function forbidden(of: typeof imports): string[] {
  return [...of].flatMap(([file, targets]) => {
    const from = folderOf(file);
    return targets
      .filter((target) => {
        const to = folderOf(target);
        return to !== from && (from === undefined || to === undefined || !allowed.get(from)?.includes(to));
      })
      .map((target) => `${file} -> ${target}`);
  });
}

test("the table names every folder of src/, and no other", () => {
  const folders = new Set([...imports.keys()].map((file) => folderOf(file) ?? `${file}: in no folder`));
  expect([...allowed.keys()].sort()).toEqual([...folders].sort());
});

test("a folder may import only folders above it in the table", () => {
  const order = [...allowed.keys()];
  const wrong = [...allowed].flatMap(([folder, targets]) =>
    targets
      .filter((target) => !order.slice(0, order.indexOf(folder)).includes(target))
      .map((target) => `${folder} -> ${target}`),
  );
  expect(wrong).toEqual([]);
});

test("every import keeps to the table", () => {
  expect(forbidden(imports)).toEqual([]);
});

test("no circle between folders", () => {
  const folders = new Map<string, Set<string>>();
  for (const [file, targets] of imports) {
    const from = folderOf(file) as string;
    const to = targets.map((target) => folderOf(target) as string).filter((folder) => folder !== from);
    folders.set(from, new Set([...(folders.get(from) ?? []), ...to]));
  }
  expect(circles(folders)).toEqual([]);
});

test("no circle between files", () => {
  expect(circles(imports)).toEqual([]);
});

test("every imported file exists", () => {
  const missing = [...imports].flatMap(([file, targets]) =>
    targets.filter((target) => !imports.has(target)).map((target) => `${file} -> ${target}`),
  );
  expect(missing).toEqual([]);
});

test("an arrow up and a circle are found in made-up files", () => {
  const text = [
    'import type { A } from "../agent/agent.ts";',
    'export { b } from "./state.ts";',
    'await import("../cli/main.ts");',
    'new Worker(new URL("./tcp.ts", import.meta.url));',
    'import { z } from "zod";',
    'import "../host/log.ts";',
  ].join("\n");
  const targets = importsOf("src/compare/state.ts", text);
  expect(targets).toEqual([
    "src/agent/agent.ts",
    "src/compare/state.ts",
    "src/cli/main.ts",
    "src/compare/tcp.ts",
    "src/host/log.ts",
  ]);
  expect(forbidden(new Map([["src/compare/parse.ts", targets]]))).toEqual([
    "src/compare/parse.ts -> src/agent/agent.ts",
    "src/compare/parse.ts -> src/cli/main.ts",
    "src/compare/parse.ts -> src/host/log.ts",
  ]);
  const graph = { a: ["b"], b: ["c", "d"], c: ["b"], d: ["e"], e: [], f: ["f"] };
  expect(circles(new Map(Object.entries(graph)))).toEqual([["b", "c"], ["f"]]);
});
