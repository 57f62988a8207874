/** Reading Markdown: its sections and tables. */

/** The lines under a heading, up to the next heading of the same or a higher level. */
function section(markdown: string, heading: string): string[] {
  const lines = markdown.split("\n");
  const start = lines.indexOf(heading);
  if (start < 0) throw new Error(`There is no heading "${heading}".`);
  const level = heading.indexOf(" ");
  const end = lines.findIndex((line, at) => at > start && new RegExp(`^#{1,${level}} `).test(line));
  return lines.slice(start + 1, end < 0 ? undefined : end);
}

/** The body rows of the first table under a heading, each as its cells without the spaces around them. */
export function tableRows(markdown: string, heading: string): string[][] {
  const lines = section(markdown, heading);
  const start = lines.findIndex((line) => line.startsWith("|"));
  if (start < 0) throw new Error(`There is no table under "${heading}".`);
  const length = lines.slice(start).findIndex((line) => !line.startsWith("|"));
  const table = lines.slice(start, length < 0 ? undefined : start + length);
  return table.slice(2).map((line) =>
    line
      .replaceAll("\\|", "\u0000")
      .split("|")
      .slice(1, -1)
      .map((cell) => cell.replaceAll("\u0000", "|").trim()),
  );
}
