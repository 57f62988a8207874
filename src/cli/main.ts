#!/usr/bin/env bun
/** The program colo-agent: runs one command; an error becomes its problem and remedy, and exit status 1. */
import { commandLine } from "./command_line.ts";
import { failureText } from "./failure.ts";

const program = commandLine();
try {
  await program.parseAsync();
} catch (error) {
  const verbose = program.opts<{ verbose?: true }>().verbose === true;
  process.stderr.write(failureText("colo-agent", error, { verbose }));
  process.exit(1);
}
