#!/usr/bin/env bun
/** The program colo-agent: runs one command; an error becomes one line and exit status 1. */
import { commandLine } from "./command_line.ts";

try {
  await commandLine().parseAsync();
} catch (error) {
  process.stderr.write(`colo-agent: ${(error as Error).message}\n`);
  process.exit(1);
}
