/**
 * An older commit of this repository, checked out and built in the cache, so that its own benchmarks can be
 * run.
 *
 * The folder is named after the full hash and is kept for the next time. It is made under another name and
 * renamed when it is complete, so that an interrupted build is never used.
 */
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { cacheDirectory } from "../../host/installed.ts";
import { type Finished, runToEnd } from "../../host/run_to_end.ts";

/** The checkout that this program runs from. */
export const CHECKOUT = join(import.meta.dir, "../../..");

/** The end of a failed command's output that its error quotes. */
const COMPLAINT_BYTES_MAX = 2_000;

interface Commit {
  /** 40 hexadecimal digits. */
  hash: string;
  /** The first line of its message. */
  subject: string;
}

const git = (repository: string, ...args: string[]): Promise<Finished> =>
  runToEnd(["git", "-C", repository, ...args]);

/** Throws an Error that says what is wrong with `repository` or with the name. */
export async function findCommit(name: string, repository: string = CHECKOUT): Promise<Commit> {
  const inside = await git(repository, "rev-parse", "--is-shallow-repository");
  if (inside.status !== 0) {
    throw new Error(`${repository} is not a git checkout (${inside.complaint}); --against needs one`);
  }
  const found = await git(
    repository,
    "rev-parse",
    "--verify",
    "--quiet",
    "--end-of-options",
    `${name}^{commit}`,
  );
  const hash = found.output.trim();
  if (found.status !== 0 || hash === "") {
    const shallow = inside.output.trim() === "true";
    const advice = shallow
      ? "this clone is shallow, fetch the rest with `git fetch --unshallow`"
      : "see `git log`";
    throw new Error(`${name} is not a commit of ${repository}: ${advice}`);
  }
  const { output } = await git(repository, "log", "-1", "--format=%s", hash);
  return { hash, subject: output.trim() };
}

/** Files that differ from the commit at hand. Untracked files count too: they may be imported. */
export async function uncommitted(repository: string = CHECKOUT): Promise<string[]> {
  const { output, status, complaint } = await git(repository, "status", "--porcelain");
  if (status !== 0) throw new Error(`git status in ${repository}: ${complaint}`);
  return output.split("\n").filter((line) => line !== "");
}

/**
 * The folder with `commit` checked out and built.
 *
 * @param step is called with what is done, if anything is
 * @throws Error with the end of a command's output, if one fails
 */
export async function builtFolder(
  { hash }: Commit,
  step: (text: string) => void,
  repository: string = CHECKOUT,
): Promise<string> {
  const folder = join(cacheDirectory(), "against", hash);
  if (existsSync(folder)) return folder;
  mkdirSync(dirname(folder), { recursive: true });
  removeUnfinished(folder);
  const unfinished = `${folder}.${process.pid}`;
  const archive = join(unfinished, "archive.tar");
  const short = hash.slice(0, 10);
  mkdirSync(unfinished);
  try {
    step(`checking out ${short} into ${folder}`);
    await succeed(["git", "-C", repository, "archive", "--format=tar", `--output=${archive}`, hash]);
    await succeed(["tar", "-xf", archive, "-C", unfinished]);
    rmSync(archive);
    step(`installing the packages of ${short}`);
    await succeed(["npm", "--prefix", unfinished, "ci", "--no-audit", "--no-fund"]);
    step(`compiling the BPF programs of ${short}`);
    await succeed([join(unfinished, "scripts/build-bpf")]);
    renameSync(unfinished, folder);
    return folder;
  } finally {
    rmSync(unfinished, { recursive: true, force: true });
  }
}

/** What builds of processes that have ended left behind. */
function removeUnfinished(folder: string): void {
  const begin = `${basename(folder)}.`;
  for (const entry of readdirSync(dirname(folder))) {
    if (!entry.startsWith(begin) || existsSync(`/proc/${entry.slice(begin.length)}`)) continue;
    rmSync(join(dirname(folder), entry), { recursive: true, force: true });
  }
}

async function succeed(command: string[]): Promise<void> {
  const { output, complaint, status } = await runToEnd(command);
  if (status === 0) return;
  const said = `${output}\n${complaint}`.trim().slice(-COMPLAINT_BYTES_MAX);
  throw new Error(`${command.join(" ")} failed with status ${status}:\n${said}`);
}
