/** Reading the text that a scrape of an agent gives (Prometheus exposition format 0.0.4). */

/** Values of a Prometheus text by "name{labels}". */
export function samples(text: string): Map<string, number> {
  const values = new Map<string, number>();
  for (const line of text.split("\n")) {
    const match = /^([a-z_]+(?:\{[^}]*\})?) (\S+)$/.exec(line);
    if (match !== null) values.set(match[1]!, Number(match[2]));
  }
  return values;
}

/** Sum of the samples of one metric, over all labels or those that contain `label`. */
export function total(text: string, name: string, label = ""): number {
  let sum = 0;
  for (const [key, value] of samples(text)) {
    if ((key === name || key.startsWith(`${name}{`)) && key.includes(label)) sum += value;
  }
  return sum;
}
