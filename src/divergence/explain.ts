/** A divergence in words: what happened, the bytes, what it cost, what to do. Pure: a record in, text out. */
import picocolors from "picocolors";
import type { DivergenceClass } from "../compare/divergence.ts";
import { adviceFor } from "./advice.ts";
import { serviceOf } from "./flow.ts";
import { hexView } from "./hex_view.ts";
import { hintsOf } from "./hints.ts";
import { type DivergenceRecord, STORED_PER_SECOND } from "./record.ts";
import { redact } from "./redact.ts";

const WIDTH = 96;

interface ExplainOptions {
  /** Hides payload: `..` and lengths only. */
  redact?: boolean;
  /** With terminal colours. */
  color?: boolean;
}

/** The parts of an explanation, for machines. Sentences. */
interface Explanation {
  what: string[];
  hints: string[];
  cost: string[];
  advice: string[];
  /** Value for `passthrough` of [[vm]]; absent if no rule can describe the flow. */
  passthrough?: string;
  /** Values for `ignore` of [[vm]]. */
  ignore: string[];
}

const WHAT: Record<DivergenceClass, string> = {
  payload: "The two VMs sent different bytes at the same place.",
  length: "The two VMs sent packets that differ in length, or in how they are fragmented.",
  missing_on_secondary:
    "The primary sent a frame without a counterpart from the secondary in time: the secondary is late, or " +
    "does not send it at all.",
  missing_on_primary:
    "The secondary sent a frame without a counterpart from the primary in time: the primary is late, or " +
    "does not send it at all.",
  flags:
    "One VM opened or closed the connection where the other did not, or they offered different TCP options.",
  unparsed:
    "The two VMs sent different frames of an unknown format. colo-agent compares such frames as a whole.",
  overflow: "More frames waited for comparison than the comparer's limits allow.",
  boundary:
    "Frames newer than a checkpoint had already been compared with output that this checkpoint undid on " +
    "the secondary. One more checkpoint was needed.",
};

export function explanationOf(record: DivergenceRecord): Explanation {
  const advice = adviceFor(record);
  const explanation: Explanation = {
    what: [WHAT[record.class], placeOf(record), `The comparer says: ${record.detail}.`],
    hints: hintsOf(record),
    cost: costOf(record),
    advice: advice.sentences,
    ignore: advice.ignore,
  };
  if (advice.passthrough !== undefined) explanation.passthrough = advice.passthrough;
  return explanation;
}

/** Several lines of text, with a newline at the end. */
export function explain(given: DivergenceRecord, options: ExplainOptions = {}): string {
  const record = options.redact ? redact(given) : given;
  const colors = picocolors.createColors(options.color === true);
  const explanation = explanationOf(record);
  const lines: string[] = [
    colors.bold(`divergence ${record.id} of VM ${record.vm}: ${record.class}`),
    `${new Date(record.timeMs).toISOString()}, epoch ${record.epoch}`,
  ];
  const section = (title: string, body: string[]) => {
    if (body.length > 0) lines.push("", colors.bold(title), ...body.map((line) => `  ${line}`.trimEnd()));
  };
  section("What happened", [
    ...explanation.what.flatMap((sentence) => wrap(sentence)),
    ...explanation.hints.flatMap((hint) => wrap(`Hint: ${hint}`, "      ")),
  ]);
  section("The bytes", hexView(record, colors));
  section(
    "What it cost",
    explanation.cost.flatMap((sentence) => wrap(sentence)),
  );
  section("What you can do", adviceLines(record, explanation));
  return `${lines.join("\n")}\n`;
}

function placeOf(record: DivergenceRecord): string {
  const { flow, streamOffset } = record;
  const service = serviceOf(flow);
  const parts = [flow.text];
  if (service !== undefined) {
    const name = service.name ?? `port ${service.port}`;
    parts.push(service.side === "source" ? `(${name}, the VM serves)` : `(${name}, the VM is the client)`);
  }
  const place = `Flow: ${parts.join(" ")}`;
  if (streamOffset === undefined) return `${place}.`;
  return `${place}, byte ${streamOffset} of the VM's data on this connection (0 is the first).`;
}

function costOf(record: DivergenceRecord): string[] {
  const { checkpoint, repeats, crowdedOut } = record;
  const sentences = [`The frame had waited ${milliseconds(record.waitedMs)}.`];
  sentences.push(`Result: ${record.action}.`);
  if (checkpoint !== undefined) {
    sentences.push(
      `The checkpoint stopped the VM for ${milliseconds(checkpoint.pauseMs)} and took ` +
        `${milliseconds(checkpoint.totalMs)} in all. The frames that it released were held that much longer.`,
    );
  }
  if (repeats > 0)
    sentences.push(
      `The same divergence occurred ${repeats} more time${repeats === 1 ? "" : "s"} within a second.`,
    );
  if (crowdedOut > 0) {
    sentences.push(
      `${crowdedOut} more divergence${crowdedOut === 1 ? "" : "s"} in that second ` +
        `${crowdedOut === 1 ? "was" : "were"} counted but not stored (limit ${STORED_PER_SECOND}/s).`,
    );
  }
  return sentences;
}

function adviceLines(record: DivergenceRecord, { advice, passthrough, ignore }: Explanation): string[] {
  const lines = advice.flatMap((sentence) => wrap(sentence));
  if (ignore.length > 0) {
    lines.push(
      ...wrap(
        `To leave these bytes out of the comparison, add this to [[vm]] ${record.vm} on both hosts. The ` +
          "primary's bytes leave; a secondary that takes over assumes that it sent its own:",
      ),
      `    ignore = ${list(ignore)}`,
    );
  }
  if (passthrough !== undefined) {
    const risk =
      record.flow.protocol === "tcp"
        ? "such connections may break at a failover"
        : "after a failover the surviving VM may not have sent them";
    lines.push(
      ...wrap(
        `To release such packets at once and never compare them, add this to [[vm]] ${record.vm} on both ` +
          `hosts. They are not protected: ${risk}:`,
      ),
      `    passthrough = ${list([passthrough])}`,
    );
  }
  return lines;
}

function list(rules: string[]): string {
  return `[${rules.map((rule) => `"${rule}"`).join(", ")}]`;
}

/** To three figures, no finer than a microsecond: a checkpoint's 16.2 ms, a wait of 0.35 ms. */
export function milliseconds(value: number): string {
  if (value >= 100) return `${Math.round(value)} ms`;
  return `${value >= 1 ? Number(value.toPrecision(3)) : Math.round(value * 1000) / 1000} ms`;
}

function wrap(sentence: string, indent = ""): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of sentence.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > WIDTH) {
      lines.push(line);
      line = indent + word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return [...lines, line];
}
