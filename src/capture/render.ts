/** A comparison's report for people. */
import type {
  CaptureContext,
  CaptureDivergence,
  CapturePlace,
  CaptureReport,
  CaptureSummary,
} from "./report.ts";

export function renderReport(report: CaptureReport): string {
  const { primary, secondary } = report;
  const lines = [...summaryLines("primary", primary), ...summaryLines("secondary", secondary)];
  lines.push(`${number(report.compared_bytes)} bytes of payload compared`);
  if (report.gap_bytes > 0) {
    lines.push(`${number(report.gap_bytes)} bytes of TCP payload are in neither capture and were skipped`);
  }
  report.divergences.forEach((divergence, i) => {
    lines.push("", ...divergenceLines(divergence, i + 1));
  });
  lines.push("", verdict(report));
  return `${lines.join("\n")}\n`;
}

function verdict(report: CaptureReport): string {
  const { divergences_total: total, divergences } = report;
  if (report.same) return "same";
  const rest = total - divergences.length;
  const hidden = rest > 0 ? `, ${rest} not shown (--limit)` : "";
  return `different: ${total} divergence${total === 1 ? "" : "s"}${hidden}`;
}

function summaryLines(side: string, summary: CaptureSummary): string[] {
  const parts = [
    [summary.frames_compared, "compared"],
    [summary.frames_not_compared, "not compared after a divergence"],
    [summary.frames_ignored, "left out (ARP, neighbour discovery, rules)"],
    [summary.frames_filtered, "not from the guest"],
    [summary.frames_before_start, "before the start of the other capture's stream"],
  ] as const;
  const counts = parts.filter(([n], i) => i === 0 || n > 0).map(([n, what]) => `${number(n)} ${what}`);
  return [
    `${side.padEnd(9)}  ${summary.file}`,
    `           ${number(summary.frames)} frames, ${number(summary.bytes)} bytes, ` +
      `${number(summary.flows)} flows; frames ${counts.join(", ")}`,
  ];
}

function divergenceLines(divergence: CaptureDivergence, index: number): string[] {
  const { primary, secondary, context, stream_offset } = divergence;
  const lines = [`${index}. ${divergence.class}  ${divergence.flow}`];
  if (stream_offset !== null) lines.push(`   stream offset ${stream_offset}`);
  lines.push(`   ${divergence.detail}`);
  lines.push(`   primary    ${describePlace(primary)}`);
  lines.push(`   secondary  ${describePlace(secondary)}`);
  if (context !== null) lines.push(...contextLines(context));
  const { primary: p, secondary: s } = divergence.frames_not_compared;
  lines.push(`   not compared from here on: ${p} frames of the primary, ${s} of the secondary`);
  return lines;
}

function describePlace(place: CapturePlace | null): string {
  if (place === null) return "nothing";
  const byte = place.byte === null ? "" : `, byte 0x${hex(place.byte)}`;
  const sequence = place.sequence === null ? "" : `, sequence ${place.sequence}`;
  return `frame ${place.frame}${sequence}, payload byte ${place.payload_offset}${byte}`;
}

function contextLines(context: CaptureContext): string[] {
  const spaced = (bytes: string) => bytes.replace(/(..)(?=.)/g, "$1 ");
  const lines = [];
  if (context.primary !== null) lines.push(`     P  ${spaced(context.primary)}`);
  if (context.secondary !== null) lines.push(`     S  ${spaced(context.secondary)}`);
  lines.push(`        ${" ".repeat(context.before * 3)}^^`);
  return lines;
}

function hex(byte: number): string {
  return byte.toString(16).padStart(2, "0");
}

/** With spaces between the thousands. */
function number(n: number): string {
  return `${n}`.replace(/\B(?=(\d{3})+$)/g, " ");
}
