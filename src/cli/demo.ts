/** `colo-agent demo`: a protected VM loses a host, and its client notices a pause. */
import { Command, Option } from "commander";
import { Listr, type ListrTask, PRESET_TIMER } from "listr2";
import pc from "picocolors";
import { requireRoot } from "../host/root.ts";
import { Lab } from "../lab/lab.ts";
import { LOSSES, type LossName, type LossResult, runLoss } from "../lab/scenario.ts";
import { isUnharmed, summary, verdict } from "./demo_summary.ts";

const LAB_NAME = "demo";
/** A client has received wrong bytes or lost its connection. */
const EXIT_HARMED = 1;

interface DemoOptions {
  only?: LossName[];
  json?: boolean;
}

export function demoCommand(): Command {
  return new Command("demo")
    .description("show a VM's survival: a client keeps one TCP connection while a host is killed (as root)")
    .addOption(new Option("--only <loss...>", "make only these losses").choices(Object.keys(LOSSES)))
    .option("--json", "print the summary as JSON")
    .action(async (options: DemoOptions) => {
      requireRoot("run the demo");
      const losses = options.only ?? (Object.keys(LOSSES) as LossName[]);
      await Lab.down(LAB_NAME);
      const takeDown = () => void Lab.down(LAB_NAME).finally(() => process.exit(130));
      process.once("SIGINT", takeDown);
      process.once("SIGTERM", takeDown);
      try {
        const results = await runAll(losses, options.json === true);
        if (options.json) process.stdout.write(`${JSON.stringify({ losses: results }, undefined, 2)}\n`);
        else process.stdout.write(summary(results));
        if (!results.every(isUnharmed)) process.exitCode = EXIT_HARMED;
      } finally {
        await Lab.down(LAB_NAME);
      }
    });
}

/** Rewritten progress lines are for terminals; elsewhere each step is one line. */
const onTerminal = () => process.stdout.isTTY === true;

async function runAll(losses: readonly LossName[], quiet: boolean): Promise<LossResult[]> {
  const results: LossResult[] = [];
  const list = new Listr(
    losses.map((loss) => lossTask(loss, results)),
    {
      concurrent: false,
      renderer: quiet ? "silent" : "default",
      fallbackRenderer: quiet ? "silent" : "simple",
      rendererOptions: { timer: PRESET_TIMER },
      fallbackRendererOptions: { timer: PRESET_TIMER },
    },
  );
  await list.run();
  return results;
}

function lossTask(loss: LossName, results: LossResult[]): ListrTask {
  const { title } = LOSSES[loss];
  return {
    title,
    task: async (_context, task) => {
      const step = (text: string) => {
        if (onTerminal()) task.title = `${title} ${pc.dim(`— ${text}`)}`;
        else task.output = text;
      };
      const lab = await Lab.up({ name: LAB_NAME, memoryMib: 256, proxy: "agent" }, (text) =>
        step(`starting the lab: ${text}`),
      );
      try {
        const result = await runLoss(lab, loss, {
          step,
          detail: (text) => {
            if (onTerminal()) task.output = text;
          },
        });
        results.push(result);
        const outcome = isUnharmed(result) ? "survived" : "harmed";
        const gap = `longest gap ${Math.round(result.connection.longestGapMs)} ms`;
        const coloured = (isUnharmed(result) ? pc.green : pc.red)(`— ${outcome}, ${gap}`);
        if (onTerminal()) task.title = `${title} ${coloured}, ${verdict(result)}`;
        else task.output = `${outcome}, ${gap}, ${verdict(result)}`;
      } finally {
        await Lab.down(LAB_NAME);
      }
    },
  };
}
