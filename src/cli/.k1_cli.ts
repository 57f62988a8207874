import { Command } from "commander";
import { benchCommand } from "/work/main/src/cli/bench.ts";
await new Command("x").addCommand(benchCommand()).parseAsync();
