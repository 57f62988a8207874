/** A divergence in words: what happened, the bytes, what it cost, what to do. Pure: a record in, text out. */
import picocolors from "picocolors";
import { adviceFor } from "./advice.ts";
import { serviceOf } from "./flow.ts";
import { hexView } from "./hex_view.ts";
import { hintsOf } from "./hints.ts";
import type { DivergenceRecord, RecordClass } from "./record.ts";
import { redact } from "./redact.ts";

const WIDTH = 96;

export interface ExplainOptions {
  /** Hides payload: `..` and lengths only. */
  redact?: boolean;
  /** With terminal colours. */
  color?: boolean;
}

/** The parts of an explanation, for machines. Sentences. */
export interface Explanation {
  what: string[];
  hints: string[];
  cost: string[];
  advice: string[];
  /** Value for `passthrough` of [[vm]]; absent if no rule can describe the flow. */
  passthrough?: string;
  /** Values for `ignore` of [[vm]]. */
  ignore: string[];
}

const WHAT: Record<RecordClass, string> = {
  payload: "The two VMs sent different bytes at the same place.",
  length: "The two VMs sent packets that differ in length, or in how they are fragmented.",
  missing_on_secondary:
    "The primary sent something for which nothing came from the secondary in time: the secondary is late, or does not send it at all.",
  missing_on_primary:
    "The secondary sent something for which nothing came from the primary in time: the primary is late, or does not send it at all.",
  flags:
    "One VM opened or closed the connection where the other did not, or they offered different TCP options.",
  timeout: "A counterpart was not there in time, and it cannot be said which of the two VMs was late.",
  unparsed:
    "The two VMs sent different frames of a kind that colo-agent cannot take apart and so compares whole.",
  overflow: "More had to wait to be compared than the comparer keeps.",
  boundary:
    "Frames newer than a checkpoint had already been compared with what that checkpoint undid on the secondary, so one more checkpoint was needed.",
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
  return `${place}; at byte ${streamOffset} of what the VM has sent on this connection (0 is the first).`;
}

function costOf(record: DivergenceRecord): string[] {
  const { checkpoint, repeats, crowdedOut } = record;
  const sentences = [`What is concerned had waited ${milliseconds(record.waitedMs)} when this was found.`];
  sentences.push(`Done: ${record.action}.`);
  if (checkpoint !== undefined) {
    sentences.push(
      `The checkpoint stopped the VM for ${milliseconds(checkpoint.pauseMs)} and took ${milliseconds(checkpoint.totalMs)} in all; what it released was held that much longer.`,
    );
  }
  if (repeats > 0) sentences.push(`The same was found ${times(repeats)} more within a second.`);
  if (crowdedOut > 0) {
    sentences.push(
      `${crowdedOut} other divergence${crowdedOut === 1 ? "" : "s"} of the same second ${crowdedOut === 1 ? "was" : "were"} counted only, there were so many.`,
    );
  }
  return sentences;
}

function adviceLines(record: DivergenceRecord, { advice, passthrough, ignore }: Explanation): string[] {
  const lines = advice.flatMap((sentence) => wrap(sentence));
  if (ignore.length > 0) {
    lines.push(
      ...wrap(
        `To leave these bytes out of the comparison, add to [[vm]] ${record.vm} on both hosts (what leaves is the primary's; the secondary, if it takes over, believes it sent its own):`,
      ),
      `    ignore = ${list(ignore)}`,
    );
  }
  if (passthrough !== undefined) {
    const risk =
      record.flow.protocol === "tcp"
        ? "such connections may break at a failover"
        : "after a failover the VM that goes on may not have sent them";
    lines.push(
      ...wrap(
        `To let such packets leave at once, never compared, add to [[vm]] ${record.vm} on both hosts (nothing is promised for them: ${risk}):`,
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

function times(n: number): string {
  return n === 1 ? "once" : `${n} times`;
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
