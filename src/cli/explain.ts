/** `colo-agent explain`: one divergence in words. */
import { Command, InvalidArgumentError } from "commander";
import picocolors from "picocolors";
import { explain, explanationOf } from "../divergence/explain.ts";
import { recordToJson } from "../divergence/json.ts";
import { exportPcapng, type SourceOptions, withDivergences, withSourceOptions } from "./divergences.ts";

export function explainCommand(): Command {
  const command = new Command("explain")
    .description("say what happened in a divergence, what it cost and what can be done")
    .argument("<id>", "its number, as `colo-agent divergences` lists it", parseId);
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

function parseId(text: string): number {
  const id = Number(text);
  if (!/^\d{1,15}$/.test(text) || id < 1) throw new InvalidArgumentError("give a whole number of 1 or more");
  return id;
}
