/** Errors that are caught and dropped: each needs a comment that says why, on its line or next to it. */

const SWALLOWS = /\bcatch \{|\.catch\(\(\) => (undefined|\{\})\)/;
const COMMENT = /\/\/|\*\//;

/** Numbers of the lines of `text` that drop an error without a reason. */
export function swallowedErrors(text: string): number[] {
  const lines = text.split("\n");
  return lines.flatMap((line, index) => {
    if (!SWALLOWS.test(line)) return [];
    const around = lines.slice(Math.max(0, index - 1), index + 2);
    return around.some((one) => COMMENT.test(one)) ? [] : [index + 1];
  });
}
