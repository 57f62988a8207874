/**
 * The imports of the sources, found in their text. The compiler's own list would leave out imports of types,
 * and an arrow between folders is one whether it carries a value or a type.
 */
import { dirname, join, relative } from "node:path";

export const REPOSITORY = join(import.meta.dir, "../..");

/**
 * `from "./x.ts"`, `import "./x.ts"`, `import("./x.ts")` and `new URL("./x.ts", import.meta.url)` of a
 * worker.
 */
const IMPORT = /(?:\bfrom\s*|\bimport\s*\(?\s*|\bnew URL\(\s*)"(\.{1,2}\/[^"]+\.ts)"/g;

/** Source file -> the files it imports, all as paths from the repository's root. */
type Imports = ReadonlyMap<string, readonly string[]>;

/** The files that the text of `file` imports, in order, as paths from the repository's root. */
export function importsOf(file: string, text: string): string[] {
  return [...text.matchAll(IMPORT)].map((match) => join(dirname(file), match[1] as string));
}

/** Every TypeScript file below `folder` (a path from the repository's root). */
function typescriptFiles(folder: string): string[] {
  const found = [...new Bun.Glob("**/*.ts").scanSync(join(REPOSITORY, folder))];
  return found.map((path) => join(folder, path)).sort();
}

export async function readImports(folder: string): Promise<Imports> {
  const files = typescriptFiles(folder);
  const texts = await Promise.all(files.map((file) => Bun.file(join(REPOSITORY, file)).text()));
  return new Map(files.map((file, at) => [file, importsOf(file, texts[at] as string)]));
}

/**
 * The folder of src/ that a file belongs to: "agent" for src/agent/metrics/frames.ts. A file of src/ itself
 * has none.
 */
export function folderOf(file: string): string | undefined {
  const [first, ...rest] = relative("src", file).split("/");
  return first === ".." || rest.length === 0 ? undefined : first;
}

/**
 * The circles of a graph: each strongly connected set of two or more nodes, or of one that points to itself
 * (Tarjan, "Depth-first search and linear graph algorithms", 1972).
 */
export function circles(edges: ReadonlyMap<string, Iterable<string>>): string[][] {
  const found: string[][] = [];
  const order = new Map<string, number>();
  const lowest = new Map<string, number>();
  const stack: string[] = [];

  function visit(node: string): void {
    order.set(node, order.size);
    lowest.set(node, order.get(node) as number);
    stack.push(node);
    for (const next of edges.get(node) ?? []) {
      if (!order.has(next)) visit(next);
      if (stack.includes(next)) {
        lowest.set(node, Math.min(lowest.get(node) as number, lowest.get(next) as number));
      }
    }
    if (lowest.get(node) !== order.get(node)) return;
    const circle = stack.splice(stack.indexOf(node));
    if (circle.length > 1 || [...(edges.get(node) ?? [])].includes(node)) found.push(circle.sort());
  }

  for (const node of edges.keys()) if (!order.has(node)) visit(node);
  return found;
}
