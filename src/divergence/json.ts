/**
 * Records as JSON: frames in base64. The shape of GET /v1/divergences/ID and of `--json`
 * (docs/divergences.md).
 */
import { z } from "zod";
import { checkedAs } from "../host/json.ts";
import { type DivergenceRecord, RECORD_CLASSES, type TopEntry } from "./record.ts";

type DivergenceJson = Omit<DivergenceRecord, "primaryFrame" | "secondaryFrame"> & {
  primaryFrame?: string;
  secondaryFrame?: string;
};

/** `frames` false leaves them out, for lists. */
export function recordToJson(record: DivergenceRecord, options: { frames: boolean }): DivergenceJson {
  const { primaryFrame, primaryCut, secondaryFrame, secondaryCut, ...rest } = record;
  if (!options.frames) return rest;
  const json: DivergenceJson = { ...rest };
  if (primaryFrame !== undefined) json.primaryFrame = Buffer.from(primaryFrame).toString("base64");
  if (primaryCut !== undefined) json.primaryCut = primaryCut;
  if (secondaryFrame !== undefined) json.secondaryFrame = Buffer.from(secondaryFrame).toString("base64");
  if (secondaryCut !== undefined) json.secondaryCut = secondaryCut;
  return json;
}

const natural = z.number().int().nonnegative();
const bytes = z.base64().transform((text) => new Uint8Array(Buffer.from(text, "base64")));
export const frameCut = z.object({ frameBytes: natural, gapOffset: natural, gapBytes: natural });

const record = z.object({
  id: natural,
  vm: z.string(),
  timeMs: z.number(),
  epoch: natural,
  flow: z.object({
    text: z.string(),
    protocol: z.string(),
    source: z.string(),
    sourcePort: natural.optional(),
    destination: z.string(),
    destinationPort: natural.optional(),
  }),
  class: z.enum(RECORD_CLASSES),
  streamOffset: natural.optional(),
  difference: z.object({ primaryFrameOffset: natural, secondaryFrameOffset: natural }).optional(),
  primaryFrame: bytes.optional(),
  primaryCut: frameCut.optional(),
  secondaryFrame: bytes.optional(),
  secondaryCut: frameCut.optional(),
  waitedMs: z.number(),
  action: z.string(),
  checkpoint: z.object({ epoch: natural, pauseMs: z.number(), totalMs: z.number() }).optional(),
  detail: z.string(),
  repeats: natural,
  crowdedOut: natural,
  redacted: z.literal(true).optional(),
});

const entry = z.object({
  key: z.string(),
  divergences: natural,
  checkpoints: natural,
  pauseMs: z.number(),
  lastTimeMs: z.number(),
});

const recordList = z.object({ divergences: z.array(record) });
const topList = z.object({ top: z.array(entry) });

// The schemas say "or undefined" where the types say "may be absent": the same in JSON, which has no
// undefined.

/** Throws MalformedError for what is no record; so do the following two. */
export function recordFromJson(json: unknown): DivergenceRecord {
  return checkedAs(record, json, "a divergence of the agent's") as DivergenceRecord;
}

export function recordsFromJson(json: unknown): DivergenceRecord[] {
  return checkedAs(recordList, json, "the agent's divergences").divergences as DivergenceRecord[];
}

export function topFromJson(json: unknown): TopEntry[] {
  return checkedAs(topList, json, "the agent's divergences").top;
}
