/** What --help prints of every command, against golden files (COLO_UPDATE_GOLDEN=1 writes them). */
import { expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "commander";
import { commandLine } from "../../src/cli/command_line.ts";
import { goldenText } from "../golden.ts";

const COLUMNS = 80;

/** "colo-agent lab up" -> the command. */
function commands(parent: Command, path = parent.name()): [string, Command][] {
  const children = parent.commands.flatMap((child) => commands(child, `${path} ${child.name()}`));
  return [[path, parent], ...children];
}

const all = commands(commandLine());

test.each(all)("%s", async (path, command) => {
  let text = "";
  const write = (part: string) => {
    text += part;
  };
  command
    .configureHelp({ helpWidth: COLUMNS })
    .configureOutput({ writeOut: write, getOutHasColors: () => false });
  command.outputHelp();
  expect(text).toBe(await goldenText(`help/${path.replaceAll(" ", "_")}.txt`, text));
});

test("no golden file is of a command that does not exist", () => {
  const files = readdirSync(join(import.meta.dir, "../golden/help"));
  expect(files.sort()).toEqual(all.map(([path]) => `${path.replaceAll(" ", "_")}.txt`).sort());
});
