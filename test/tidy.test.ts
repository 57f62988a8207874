/**
 * The mechanical rules of the house: length of lines and files, links and paths that exist, exports that
 * somebody uses, a changelog with an entry for the version. What may break a rule stands in
 * tidy/exceptions.ts.
 */
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { VERSION } from "../src/host/version.ts";
import { tableRows } from "./tidy/documents.ts";
import { FOREIGN_PATHS, LONG_FILES } from "./tidy/exceptions.ts";
import { deadExports } from "./tidy/exports.ts";
import { isCode, isDocument, readText, repositoryFiles } from "./tidy/files.ts";
import { REPOSITORY } from "./tidy/imports.ts";
import { LINE_LENGTH_MAX, longLines, longProse } from "./tidy/line_length.ts";
import { anchorsOf, linksOf, pathsNamed } from "./tidy/references.ts";
import { swallowedErrors } from "./tidy/swallowed.ts";
import { VARIABLES } from "./variables.ts";

const FILE_LINES_MAX = 450;

const files = repositoryFiles();
const texts = new Map<string, string>();
for (const file of files.filter((name) => isCode(name) || isDocument(name))) {
  texts.set(file, await readText(file));
}
const all = [...texts];
const documents = all.filter(([file]) => isDocument(file));

describe("lines", () => {
  test(`no line of a document is longer than ${LINE_LENGTH_MAX}, tables, links and code aside`, () => {
    const long = documents.flatMap(([file, text]) => longProse(text).map((line) => `${file}:${line}`));
    expect(long).toEqual([]);
  });

  test(`no line of code is longer than ${LINE_LENGTH_MAX}`, () => {
    const code = all.filter(([file]) => isCode(file));
    const long = code.flatMap(([file, text]) => longLines(text).map((line) => `${file}:${line}`));
    expect(long).toEqual([]);
  });

  test("long lines are found", () => {
    const [short, long] = ["x".repeat(LINE_LENGTH_MAX), "x".repeat(LINE_LENGTH_MAX + 1)];
    expect(longLines(`${short}\n${long}`)).toEqual([2]);
    const prose = ["```", long, "```", long, `| ${long} |`, `[${long}](a.md)`, short, `  ${long}`];
    expect(longProse(prose.join("\n"))).toEqual([4, 8]);
  });
});

describe("files", () => {
  const lengths = all
    .filter(([file]) => /^(src|bpf)\//.test(file))
    .map(([file, text]) => [file, text.split("\n").length - 1] as const);

  test(`no source file is longer than ${FILE_LINES_MAX} lines without a reason`, () => {
    const long = lengths.filter(([file, length]) => length > FILE_LINES_MAX && !(file in LONG_FILES));
    expect(long).toEqual([]);
  });

  test("no reason is given for a file that is short", () => {
    const long = new Set(lengths.filter(([, length]) => length > FILE_LINES_MAX).map(([file]) => file));
    expect(Object.keys(LONG_FILES).filter((file) => !long.has(file))).toEqual([]);
  });
});

describe("references", () => {
  const exists = (path: string) => existsSync(join(REPOSITORY, path));
  const foreign = (path: string) =>
    FOREIGN_PATHS.some((name) => path === name || path.startsWith(`${name}/`));

  test("every path that a document, a comment or a script names exists", () => {
    const others = all.filter(([file]) => file !== "test/tidy.test.ts");
    const missing = others.flatMap(([file, text]) =>
      pathsNamed(text)
        .filter(({ path }) => !exists(path) && !foreign(path))
        .map(({ line, path }) => `${file}:${line}: ${path}`),
    );
    expect(missing).toEqual([]);
  });

  test("every link of a document leads to a file and, where it names one, to a heading", () => {
    const broken = documents.flatMap(([file, text]) =>
      linksOf(file, text)
        .filter(({ path, anchor }) => {
          if (!exists(path)) return true;
          return anchor !== undefined && isDocument(path) && !anchorsOf(texts.get(path) ?? "").has(anchor);
        })
        .map(({ line, path, anchor = "" }) => `${file}:${line}: ${path}#${anchor}`),
    );
    expect(broken).toEqual([]);
  });

  test("paths and links are found", () => {
    expect(
      pathsNamed("see src/a/b.ts, `test/c.test.ts:12` and /usr/src/d.ts.").map(({ path }) => path),
    ).toEqual(["src/a/b.ts", "test/c.test.ts"]);
    const links = linksOf("docs/x.md", "[a](b.md#c-d) [e](../README.md) [f](https://example.org/g) [h](#i)");
    expect(links.map(({ path, anchor }) => [path, anchor])).toEqual([
      ["docs/b.md", "c-d"],
      ["README.md", undefined],
      ["docs/x.md", "i"],
    ]);
    const headings = "# A\n## What it `is`: a test\n```\n# no heading\n```\n## A\n### [Link](x.md)";
    expect([...anchorsOf(headings)]).toEqual(["a", "what-it-is-a-test", "a-1", "link"]);
  });
});

describe("errors", () => {
  test("none is caught and dropped without a reason", () => {
    const swallowed = all
      .filter(([file]) => /^src\/.*\.ts$/.test(file))
      .flatMap(([file, text]) => swallowedErrors(text).map((line) => `${file}:${line}`));
    expect(swallowed).toEqual([]);
  });

  test("those without a reason are found", () => {
    expect(swallowedErrors("try {\n} catch {\n  return;\n}")).toEqual([2]);
    expect(swallowedErrors("try {\n} catch {\n  // It has ended.\n}")).toEqual([]);
    expect(swallowedErrors("a.catch(() => undefined);\n\nb.catch(() => undefined); // told")).toEqual([1]);
  });
});

describe("exports", () => {
  test("each is imported by another file", () => {
    expect(deadExports(new Map(all.filter(([file]) => file.endsWith(".ts"))))).toEqual([]);
  });

  test("dead ones are found, and no others", () => {
    const found = deadExports(
      new Map([
        [
          "src/a.ts",
          "export const used = 1;\nexport interface Dead {}\nexport type Type = 1;\nexport function far() {}",
        ],
        ["src/b.ts", 'import { type Type, used as mine } from "./a.ts";\nexport const whole = mine;'],
        ["src/c.ts", 'import * as b from "./b.ts";\nconst { far } = await import("./d.ts");\n'],
        ["src/d.ts", "export class D {}"],
        ["src/e.ts", 'load: async () => (await import("./a.ts")).far'],
      ]),
    );
    expect(found).toEqual(["src/a.ts: Dead"]);
  });
});

describe("documents", () => {
  test("CHANGELOG.md has an entry for this version", async () => {
    expect(await readText("CHANGELOG.md")).toMatch(
      new RegExp(`^## \\[${VERSION.replaceAll(".", "\\.")}\\]`, "m"),
    );
  });

  test("CONTRIBUTING.md has the variables of the tests, as test/variables.ts has them", async () => {
    const rows = tableRows(await readText("CONTRIBUTING.md"), "## Variables");
    const form = (value: string | undefined) => value ?? "";
    const expected = Object.entries(VARIABLES).map(([name, variable]) => {
      const {
        meaning,
        quick,
        usual,
        long,
      }: { meaning: string; quick?: string; usual?: string; long?: string } = variable;
      return [`\`${name}\``, form(usual), form(quick), form(long), meaning];
    });
    expect(rows).toEqual(expected);
  });

  test("no test looks for a variable that test/variables.ts lacks", () => {
    const tests = all.filter(([file]) => file.startsWith("test/") && file !== "test/variables.ts");
    const names = tests.flatMap(([file, text]) =>
      [...text.matchAll(/process\.env(?:\.|\[")(COLO_\w+)/g)].map((match) => `${file}: ${match[1]}`),
    );
    expect(names).toEqual([]);
  });
});
