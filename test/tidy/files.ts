/** The files of the repository that the tidy test reads. */
import { join } from "node:path";
import { REPOSITORY } from "./imports.ts";

/** Those of Git, new ones included; without what .gitignore names. Paths from the repository's root. */
export function repositoryFiles(): string[] {
  const list = Bun.spawnSync(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], {
    cwd: REPOSITORY,
  });
  if (list.exitCode !== 0) throw new Error(`git ls-files: ${list.stderr.toString()}`);
  const names = list.stdout.toString().split("\0").filter(Boolean);
  return names.filter((name) => Bun.file(join(REPOSITORY, name)).size > 0).sort();
}

export function readText(file: string): Promise<string> {
  return Bun.file(join(REPOSITORY, file)).text();
}

const FOLDERS = /^(src|test|scripts|bpf|deploy|guest|model|\.ci)\//;
const SOURCE = /\.(ts|c|h|S|sh|pml|py|lua|toml|service)$/;
const SCRIPT = /^(scripts|\.ci|guest)\/[^.]+$/;

/** Source files, scripts and configuration, whatever their language. */
export const isCode = (file: string): boolean =>
  SCRIPT.test(file) || (FOLDERS.test(file) && SOURCE.test(file));
export const isDocument = (file: string): boolean => file.endsWith(".md");
