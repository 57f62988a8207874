/**
 * Exports that no other file imports. Text is enough for it: biome keeps the form of imports and exports, and
 * every name is imported from the file that declares it.
 */
import { importsOf } from "./imports.ts";

const DECLARED =
  /^export (?:(?:abstract|async) )?(?:const|let|function\*?|class|interface|type|enum) (\w+)/gm;
const NAMED = /^(?:import|export) (?:type )?\{([^}]*)\} from "(\.{1,2}\/[^"]+)";/gm;
/**
 * Everything of a file may be used: `import * as x`, and `import("x")` unless names are taken out of it at
 * once.
 */
const WHOLE = /^import (?:type )?\* as \w+ from "(\.{1,2}\/[^"]+)";|import\("(\.{1,2}\/[^"]+)"\)(?!\)\.)/gm;
const TAKEN = /\(await import\("(\.{1,2}\/[^"]+)"\)\)\.(\w+)/g;

/** @param texts file -> text, for all files that may import or export */
export function deadExports(texts: ReadonlyMap<string, string>): string[] {
  const used = new Set<string>();
  const usedWhole = new Set<string>();
  for (const [file, text] of texts) {
    const resolve = (path: string) => importsOf(file, `import "${path}"`)[0] as string;
    for (const [, names, path] of text.matchAll(NAMED)) {
      for (const name of (names as string).split(",")) {
        const original = name
          .trim()
          .replace(/^type /, "")
          .split(" as ")[0];
        used.add(`${resolve(path as string)}: ${original}`);
      }
    }
    for (const [, path, name] of text.matchAll(TAKEN)) used.add(`${resolve(path as string)}: ${name}`);
    for (const [, static_, dynamic] of text.matchAll(WHOLE))
      usedWhole.add(resolve((static_ ?? dynamic) as string));
  }
  return [...texts].flatMap(([file, text]) =>
    usedWhole.has(file)
      ? []
      : [...text.matchAll(DECLARED)].map(([, name]) => `${file}: ${name}`).filter((name) => !used.has(name)),
  );
}
