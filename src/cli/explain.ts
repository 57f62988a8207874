/** `colo-agent explain`: one divergence in sentences. */
import { Command } from "commander";
import picocolors from "picocolors";
import { explain, explanationOf } from "../divergence/explain.ts";
import { recordToJson } from "../divergence/json.ts";
import { wholeNumber } from "./arguments.ts";
import { exportPcapng, type SourceOptions, withDivergences, withSourceOptions } from "./divergences.ts";

export function explainCommand(): Command {
  const command = new Command("explain")
    .description("explain a divergence: the difference, its cost and the possible actions")
    .argument("<id>", "id in the list of `colo-agent divergences`", wholeNumber(1, Number.MAX_SAFE_INTEGER));
  return withSourceOptions(command).action((id: number, options: SourceOptions) =>
    withDivergences(options, async (source) => {
      const record = await source.get(id);
      if (options.pcapng !== undefined) exportPcapng(options.pcapng, [record]);
      if (options.json) {
        const json = { ...recordToJson(record, { frames: true }), explanation: explanationOf(record) };
        process.stdout.write(`${JSON.stringify(json, undefined, 2)}\n`);
        return;
      }
      const color = process.stdout.isTTY && picocolors.isColorSupported;
      process.stdout.write(explain(record, { color }));
    }),
  );
}
