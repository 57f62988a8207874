/**
 * The parts of docs/configuration.md that are made: the example file, and a table of keys for each table of
 * the configuration, from the descriptions in the schema (src/config).
 *
 * Zod turns the schema into JSON Schema, which holds descriptions, limits and defaults as data.
 */
import { join } from "node:path";
import { z } from "zod";
import { schema } from "../../src/config/schema.ts";

const ROOT = join(import.meta.dir, "../..");
export const PAGE = join(ROOT, "docs/configuration.md");
export const EXAMPLE = join(ROOT, "deploy/colo-agent.toml");

const LINE_MAX = 108;

/**
 * What this file reads of JSON Schema, with the metadata of src/config: `kind` of value, default `otherwise`.
 */
interface Key {
  type?: string;
  description?: string;
  kind?: string;
  otherwise?: string;
  default?: unknown;
  const?: string;
  enum?: string[];
  minimum?: number;
  maximum?: number;
  maxItems?: number;
  items?: Key;
  properties?: Record<string, Key>;
  required?: string[];
  oneOf?: Key[];
}

interface Row {
  /** The key with its table, as in a message about it: "vm.nic.tap". */
  path: string;
  key: string;
  type: string;
  unit: string;
  default: string;
  meaning: string;
}

interface Table {
  /** Its line in the file: "[agent]", "[[vm.nic]]". */
  heading: string;
  meaning: string;
  rows: Row[];
}

const UNITS: readonly [suffix: RegExp, unit: string][] = [
  [/bytes_per_second$/, "bytes/s"],
  [/_ms$/, "ms"],
  [/_s$/, "s"],
  [/_bytes$/, "bytes"],
  [/_percent$/, "%"],
  [/_ppm$/, "ppm"],
  [/frames(_per_flow)?_max$/, "frames"],
  [/flows_max$/, "flows"],
  [/connections_max$/, "connections"],
];

/** Every table of the configuration, in the order of the schema. */
export function configurationTables(): Table[] {
  const root = z.toJSONSchema(schema, { io: "input", unrepresentable: "any", reused: "inline" }) as Key;
  return Object.entries(root.properties ?? {}).flatMap(([name, key]) => tablesOf(name, key));
}

function tablesOf(path: string, key: Key): Table[] {
  const body = key.items ?? key;
  const { properties = {}, required = [] } = body.oneOf === undefined ? body : merged(body.oneOf);
  const rows: Row[] = [];
  const below: Table[] = [];
  for (const [name, value] of Object.entries(properties)) {
    if (isTable(value)) below.push(...tablesOf(`${path}.${name}`, value));
    else rows.push(row(`${path}.${name}`, name, value, required.includes(name)));
  }
  const heading = key.items === undefined ? `[${path}]` : `[[${path}]]`;
  return [{ heading, meaning: body.description ?? key.description ?? "", rows }, ...below];
}

function isTable(key: Key): boolean {
  return (key.items ?? key).properties !== undefined;
}

/**
 * One table of alternatives that `type` tells apart: a key that only some have is marked with their types.
 */
function merged(alternatives: readonly Key[]): Key {
  const properties: Record<string, Key> = {
    type: {
      enum: alternatives.map(typeOf),
      description: "Kind of arbiter.",
      otherwise: '`"none"`',
    },
  };
  const withKeys = alternatives.filter(({ properties: keys = {} }) => Object.keys(keys).length > 1);
  const required = new Set<string>();
  for (const alternative of withKeys) {
    for (const [name, key] of Object.entries(alternative.properties ?? {})) {
      if (name === "type" || name in properties) continue;
      const having = withKeys.filter(({ properties: keys = {} }) => name in keys);
      properties[name] =
        having.length === withKeys.length ? key : { ...key, description: onlyWith(having, key) };
      if (alternative.required?.includes(name)) required.add(name);
    }
  }
  return { properties, required: [...required] };
}

function typeOf(alternative: Key): string {
  return alternative.properties?.type?.const ?? "";
}

function onlyWith(having: readonly Key[], { description = "" }: Key): string {
  const types = having.map((one) => `\`${typeOf(one)}\``).join(", ");
  return `With ${types}: ${description.charAt(0).toLowerCase()}${description.slice(1)}`;
}

function row(path: string, name: string, key: Key, required: boolean): Row {
  return {
    path,
    key: name,
    type: typeText(key),
    unit: UNITS.find(([suffix]) => suffix.test(name))?.[1] ?? "",
    default: defaultText(key, required),
    meaning: key.description ?? "",
  };
}

function typeText(key: Key): string {
  if (key.enum !== undefined) return key.enum.map((one) => `\`"${one}"\``).join(", ");
  if (key.type === "array") return `list of ${key.items === undefined ? "value" : typeText(key.items)}s`;
  if (key.type === "object") return "table of strings";
  if (key.type === "integer") {
    const range = `${key.minimum}–${key.maximum}`;
    return key.kind === undefined ? `integer, ${range}` : `${key.kind}, ${range}`;
  }
  return key.kind ?? key.type ?? "";
}

function defaultText(key: Key, required: boolean): string {
  if (key.otherwise !== undefined) return key.otherwise;
  if (key.default !== undefined) return `\`${JSON.stringify(key.default)}\``;
  return required ? "**required**" : "none";
}

/** Links to the headings of all tables, as GitHub makes their anchors. */
function contents(tables: readonly Table[]): string {
  const links = tables.map(({ heading }) => `[\`${heading}\`](#${heading.replace(/[^a-z_]/g, "")})`);
  return `Tables: ${links.join(", ")}`;
}

function keysText(): string {
  const tables = configurationTables();
  const sections = tables
    .map(({ heading, meaning, rows }) => {
      const lines = rows.map((one) =>
        [`\`${one.key}\``, one.type, one.unit, one.default, one.meaning]
          .map((cell) => ` ${cell.replaceAll("|", "\\|")} `.replace(/^ {2}$/, " "))
          .join("|"),
      );
      return [
        `### \`${heading}\``,
        "",
        wrapped(meaning),
        "",
        "| key | type | unit | default | meaning |",
        "| --- | --- | --- | --- | --- |",
        ...lines.map((line) => `|${line}|`),
      ].join("\n");
    })
    .join("\n\n");
  return `${wrapped(contents(tables))}\n\n${sections}`;
}

/** In lines of at most {@link LINE_MAX} characters; links and code stay whole. */
function wrapped(text: string): string {
  const lines: string[] = [];
  for (const word of text.match(/(?:\[[^\]]*\]\([^)]*\)|`[^`]*`|\S)+/g) ?? []) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= LINE_MAX)
      lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines.join("\n");
}

/** `page` with its made parts as they have to be. Throws if a marker is missing. */
export function withMadeParts(page: string, example: string): string {
  const parts = { example: `\n\`\`\`toml\n${example}\`\`\`\n`, keys: `\n${keysText()}\n` };
  let made = page;
  for (const [name, text] of Object.entries(parts)) {
    const marked = new RegExp(`(<!-- ${name}: .*? -->\n)[^]*?(<!-- end -->)`);
    if (!marked.test(made)) throw new Error(`docs/configuration.md has no marker "<!-- ${name}: ... -->"`);
    made = made.replace(marked, (_all, begin: string, end: string) => `${begin}${text}\n${end}`);
  }
  return made;
}

if (import.meta.main) {
  const [page, example] = await Promise.all([Bun.file(PAGE).text(), Bun.file(EXAMPLE).text()]);
  await Bun.write(PAGE, withMadeParts(page, example));
}
