/** Lines longer than the house's limit. */

export const LINE_LENGTH_MAX = 110;

/** The numbers of the lines of a source file that are too long, from 1. */
export function longLines(text: string): number[] {
  return text.split("\n").flatMap((line, at) => (line.length > LINE_LENGTH_MAX ? [at + 1] : []));
}

/** The same for Markdown, where tables, code blocks and lines with a link may be longer. */
export function longProse(text: string): number[] {
  let code = false;
  return text.split("\n").flatMap((line, at) => {
    if (/^\s*(```|~~~)/.test(line)) code = !code;
    const free = code || /^\s*\|/.test(line) || /\]\(|https?:\/\//.test(line);
    return !free && line.length > LINE_LENGTH_MAX ? [at + 1] : [];
  });
}
