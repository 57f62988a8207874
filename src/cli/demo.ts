/** `colo-agent demo`: a protected VM loses a host, and its client notices a pause. */
import Table from "cli-table3";
import { Command, Option } from "commander";
import { Listr } from "listr2";
import pc from "picocolors";
import { Lab } from "../lab/lab.ts";
import { LOSSES, type LossName, type LossResult, runLoss } from "../lab/scenario.ts";
import { requireRoot } from "./root.ts";

const LAB_NAME = "demo";

interface DemoOptions {
  only?: LossName[];
  json?: boolean;
}

export function demoCommand(): Command {
  return new Command("demo")
    .description("watch a VM survive: a client keeps one TCP connection while a host is killed")
    .addOption(new Option("--only <loss...>", "some of the losses only").choices(Object.keys(LOSSES)))
    .option("--json", "the summary for machines")
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
      } finally {
        await Lab.down(LAB_NAME);
      }
    });
}

async function runAll(losses: readonly LossName[], quiet: boolean): Promise<LossResult[]> {
  const results: LossResult[] = [];
  const tasks = losses.map((loss) => ({
    title: `${loss}: ${LOSSES[loss].title}`,
    task: (_context: unknown, parent: { newListr: (...args: never[]) => Listr }) =>
      parent.newListr([lossTasks(loss, results)] as never, { concurrent: false } as never),
  }));
  await new Listr(
    tasks as never,
    {
      concurrent: false,
      exitOnError: true,
      renderer: quiet ? "silent" : "default",
      fallbackRenderer: quiet ? "silent" : "simple",
      rendererOptions: { collapseSubtasks: false, timer: { condition: true, field: seconds } },
      fallbackRendererOptions: { timer: { condition: true, field: seconds } },
    } as never,
  ).run();
  return results;
}

const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`;

interface TaskHandle {
  title: string;
  output: string;
}

function lossTasks(loss: LossName, results: LossResult[]) {
  return {
    title: "two hosts, one VM, a client",
    task: async (_context: unknown, task: TaskHandle) => {
      const lab = await Lab.up({ name: LAB_NAME, memoryMib: 256, proxy: "agent" }, (step) => {
        task.title = `starting the lab: ${step}`;
      });
      try {
        const result = await runLoss(lab, loss, {
          step: (text) => {
            task.title = text;
          },
          detail: (text) => {
            task.output = text;
          },
        });
        results.push(result);
        task.title = `survived: longest gap ${Math.round(result.connection.longestGapMs)} ms, ${verdict(result)}`;
      } finally {
        await Lab.down(LAB_NAME);
      }
    },
    rendererOptions: { outputBar: 1, persistentOutput: false },
  };
}

function verdict(result: LossResult): string {
  const mb = (result.connection.bytesReceived / 1e6).toFixed(1);
  return `${mb} MB checked each way, ${result.disk.verifiedBlocks} acknowledged blocks on the survivor's disk`;
}

function summary(results: readonly LossResult[]): string {
  const table = new Table({
    head: [
      "lost",
      "survivor",
      "longest gap",
      "bytes each way",
      "wrong bytes",
      "reconnects",
      "blocks acked = found",
      "checkpoints",
    ],
    style: { head: [], border: [] },
  });
  for (const result of results) {
    table.push([
      result.loss,
      `host ${result.survivor}`,
      `${Math.round(result.connection.longestGapMs)} ms`,
      result.connection.bytesReceived,
      0,
      0,
      `${result.disk.acknowledgedBlocks} = ${result.disk.verifiedBlocks}`,
      Object.values(result.checkpoints).reduce((sum, count) => sum + count, 0),
    ]);
  }
  const line = pc.green(
    "Every connection survived, every byte was checked, every acknowledged block is on the survivor's disk.",
  );
  return `\n${table.toString()}\n${line}\n`;
}
