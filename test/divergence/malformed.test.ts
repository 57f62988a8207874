/** Divergences from a database or an agent that are not what this program writes. */
import { describe, expect, test } from "bun:test";
import { recordFromJson, recordsFromJson, recordToJson, topFromJson } from "../../src/divergence/json.ts";
import { fromRow, type Row, toRow } from "../../src/divergence/schema.ts";
import { MalformedError } from "../../src/host/json.ts";
import { record } from "./records.ts";

const CUT = { frameBytes: 9_000, gapOffset: 200, gapBytes: 100 };
const RECORD = record({ id: 7, primaryFrame: new Uint8Array(64), primaryCut: CUT });

test("a record survives the database and JSON", () => {
  expect(fromRow(toRow(RECORD))).toEqual(RECORD);
  expect(recordFromJson(recordToJson(RECORD, { frames: true }))).toEqual(RECORD);
});

describe("a row of the database", () => {
  const rows: [string, Partial<Row>][] = [
    ["a cut that is not JSON", { primary_cut: "{" }],
    ["a cut without its gap", { primary_cut: '{"frameBytes":9000}' }],
    ["a cut before the frame", { secondary_cut: JSON.stringify({ ...CUT, gapOffset: -1 }) }],
    ["a class that does not exist", { class: "rumour" }],
  ];
  test.each(rows)("%s is an error that names the record", (_, change) => {
    const read = () => fromRow({ ...toRow(RECORD), ...change });
    expect(read).toThrow(MalformedError);
    expect(read).toThrow(/^divergence 7 of the database: /);
  });
});

describe("an agent's answer", () => {
  const json = recordToJson(RECORD, { frames: true });
  const answers: [string, unknown][] = [
    ["nothing", null],
    ["a list", [json]],
    ["a frame that is not base64", { ...json, primaryFrame: "*" }],
    ["an epoch of text", { ...json, epoch: "1" }],
    ["no flow", { ...json, flow: undefined }],
  ];
  test.each(answers)("%s is no divergence", (_, answer) => {
    expect(() => recordFromJson(answer)).toThrow(MalformedError);
    expect(() => recordsFromJson({ divergences: [answer] })).toThrow(
      /^the agent's divergences: divergences: 0/,
    );
  });

  test("no list of divergences, and none of the most frequent", () => {
    expect(() => recordsFromJson({})).toThrow(MalformedError);
    expect(() => topFromJson({ top: [{ key: 5 }] })).toThrow(MalformedError);
  });
});
