/** Paths that documents, comments and scripts name: each has to exist. */
import { dirname, join, normalize } from "node:path";

/** A path of this repository as it is written in text: it begins with one of its folders. */
const PATH = /(?<![\w./$~{}-])(?:src|test|bpf|docs|scripts|model|deploy|guest|\.ci)\/[\w./-]*[\w-]/g;
/** [text](target) of Markdown; the target without a title. */
const LINK = /\]\(\s*([^()\s]+)[^()]*\)/g;

interface Reference {
  line: number;
  /** From the repository's root. */
  path: string;
  /** The heading in the target, as in "a.md#usage". */
  anchor?: string;
}

function* matches(text: string, expression: RegExp): Generator<{ line: number; match: RegExpMatchArray }> {
  for (const [at, line] of text.split("\n").entries()) {
    for (const match of line.matchAll(expression)) yield { line: at + 1, match };
  }
}

/** Paths from the repository's root in a text. */
export function pathsNamed(text: string): Reference[] {
  return [...matches(text, PATH)].map(({ line, match }) => ({ line, path: match[0] }));
}

/** The links of a Markdown file that lead into the repository. */
export function linksOf(file: string, text: string): Reference[] {
  return [...matches(text, LINK)].flatMap(({ line, match }) => {
    const target = match[1] as string;
    if (/^[a-z]+:/.test(target)) return [];
    const [path, anchor] = target.split("#");
    const whole = path === "" ? file : normalize(join(dirname(file), path as string));
    return [{ line, path: whole, ...(anchor === undefined ? {} : { anchor }) }];
  });
}

/** The anchors that GitHub makes of a Markdown file's headings. */
export function anchorsOf(text: string): Set<string> {
  const anchors = new Set<string>();
  let code = false;
  for (const line of text.split("\n")) {
    if (line.startsWith("```")) code = !code;
    const heading = code ? undefined : /^#+ (.*)$/.exec(line)?.[1];
    if (heading === undefined) continue;
    const plain = heading.replaceAll(/\[([^\]]*)\]\([^)]*\)/g, "$1").toLowerCase();
    const anchor = plain.replaceAll(/[^\p{L}\p{N}_ -]/gu, "").replaceAll(" ", "-");
    for (let n = 0; ; n++) {
      const name = n === 0 ? anchor : `${anchor}-${n}`;
      if (anchors.has(name)) continue;
      anchors.add(name);
      break;
    }
  }
  return anchors;
}
