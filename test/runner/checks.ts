/**
 * The checks of the code that need no test. `scripts/test --quick` leaves out those whose program is missing.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { repositoryFiles } from "../tidy/files.ts";
import { REPOSITORY } from "../tidy/imports.ts";

const files = repositoryFiles();
const C_FILES = files.filter((file) => /\.[ch]$/.test(file));
const SHELL_SCRIPTS = files.filter(
  (file) => /\.sh$|(^|\/)[^.]*$/.test(file) && /^#!.*\bsh$|^#!.*bash|^# shellcheck/.test(firstLine(file)),
);

function firstLine(file: string): string {
  return readFileSync(join(REPOSITORY, file), "utf8").split("\n", 1)[0] ?? "";
}

/** Name, command. */
export const CHECKS: readonly (readonly [string, readonly string[]])[] = [
  ["lint (biome)", ["biome", "check", "--error-on-warnings", "."]],
  ["types (tsc)", ["npm", "run", "--silent", "typecheck"]],
  ["shell scripts (shellcheck)", ["shellcheck", "--external-sources", ...SHELL_SCRIPTS]],
  ["C (clang-format)", ["clang-format", "--dry-run", "--Werror", ...C_FILES]],
];
