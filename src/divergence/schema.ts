/** The database of divergences: its table, and rows from and to records. */

import type { Database } from "bun:sqlite";
import { z } from "zod";
import { checkedAs, jsonAs } from "../host/json.ts";
import { portKey } from "./flow.ts";
import { frameCut } from "./json.ts";
import { type DivergenceRecord, RECORD_CLASSES } from "./record.ts";

/**
 * PRAGMA user_version. Another version is moved aside, not converted: what is kept is for the search of
 * today's cause.
 */
export const SCHEMA_VERSION = 1;

/** AUTOINCREMENT: the number of a record that was pruned is never given again. */
export const CREATE_TABLE = `
create table divergences (
  id integer primary key autoincrement,
  vm text not null,
  time_ms integer not null,
  epoch integer not null,
  class text not null,
  flow text not null,
  protocol text not null,
  source text not null,
  source_port integer,
  destination text not null,
  destination_port integer,
  port_key text not null,
  stream_offset integer,
  primary_offset integer,
  secondary_offset integer,
  primary_frame blob,
  primary_cut text,
  secondary_frame blob,
  secondary_cut text,
  waited_ms real not null,
  action text not null,
  checkpoint_epoch integer,
  pause_ms real,
  total_ms real,
  detail text not null,
  repeats integer not null,
  crowded_out integer not null,
  bytes integer not null
) strict`;

export interface Row {
  id: number;
  vm: string;
  time_ms: number;
  epoch: number;
  class: string;
  flow: string;
  protocol: string;
  source: string;
  source_port: number | null;
  destination: string;
  destination_port: number | null;
  port_key: string;
  stream_offset: number | null;
  primary_offset: number | null;
  secondary_offset: number | null;
  primary_frame: Uint8Array | null;
  primary_cut: string | null;
  secondary_frame: Uint8Array | null;
  secondary_cut: string | null;
  waited_ms: number;
  action: string;
  checkpoint_epoch: number | null;
  pause_ms: number | null;
  total_ms: number | null;
  detail: string;
  repeats: number;
  crowded_out: number;
  bytes: number;
}

const COLUMN_NAMES = [
  "id",
  "vm",
  "time_ms",
  "epoch",
  "class",
  "flow",
  "protocol",
  "source",
  "source_port",
  "destination",
  "destination_port",
  "port_key",
  "stream_offset",
  "primary_offset",
  "secondary_offset",
  "primary_frame",
  "primary_cut",
  "secondary_frame",
  "secondary_cut",
  "waited_ms",
  "action",
  "checkpoint_epoch",
  "pause_ms",
  "total_ms",
  "detail",
  "repeats",
  "crowded_out",
  "bytes",
] as const satisfies readonly (keyof Row)[];

export const COLUMNS = COLUMN_NAMES.join(", ");
const PLACEHOLDERS = COLUMN_NAMES.map((name) => `$${name}`).join(", ");
export const INSERT = `insert into divergences (${COLUMNS}) values (${PLACEHOLDERS})`;

type SchemaState = "empty" | "usable" | { unusable: string };

/** What a database file holds. Throws SQLite's error when it cannot be read at all. */
export function schemaState(database: Database): SchemaState {
  const version = database.query<{ user_version: number }, []>("pragma user_version").get()?.user_version;
  const tables = database.query<{ n: number }, []>("select count(*) as n from sqlite_schema").get()?.n;
  if (version === 0 && tables === 0) return "empty";
  if (version !== SCHEMA_VERSION) {
    return {
      unusable: `it has schema version ${version}, and this colo-agent writes version ${SCHEMA_VERSION}`,
    };
  }
  const check = database.query<{ quick_check: string }, []>("pragma quick_check(1)").get()?.quick_check;
  if (check !== "ok") return { unusable: `SQLite finds it damaged (${check})` };
  database.query(`select ${COLUMNS} from divergences limit 0`).all();
  return "usable";
}

/**
 * What a record counts for against `bytesMax`: its frames and texts, and something for the rest of the row.
 */
function bytesOf(record: DivergenceRecord): number {
  const { flow } = record;
  const texts = [record.vm, record.class, flow.text, flow.source, flow.destination, record.detail];
  const frames = (record.primaryFrame?.length ?? 0) + (record.secondaryFrame?.length ?? 0);
  return 256 + frames + texts.reduce((sum, text) => sum + text.length, 0);
}

export function toRow(record: DivergenceRecord): Row {
  const { flow, difference, checkpoint } = record;
  return {
    id: record.id,
    vm: record.vm,
    time_ms: Math.round(record.timeMs),
    epoch: record.epoch,
    class: record.class,
    flow: flow.text,
    protocol: flow.protocol,
    source: flow.source,
    source_port: flow.sourcePort ?? null,
    destination: flow.destination,
    destination_port: flow.destinationPort ?? null,
    port_key: portKey(flow),
    stream_offset: record.streamOffset ?? null,
    primary_offset: difference?.primaryFrameOffset ?? null,
    secondary_offset: difference?.secondaryFrameOffset ?? null,
    primary_frame: record.primaryFrame ?? null,
    primary_cut: record.primaryCut === undefined ? null : JSON.stringify(record.primaryCut),
    secondary_frame: record.secondaryFrame ?? null,
    secondary_cut: record.secondaryCut === undefined ? null : JSON.stringify(record.secondaryCut),
    waited_ms: record.waitedMs,
    action: record.action,
    checkpoint_epoch: checkpoint?.epoch ?? null,
    pause_ms: checkpoint?.pauseMs ?? null,
    total_ms: checkpoint?.totalMs ?? null,
    detail: record.detail,
    repeats: record.repeats,
    crowded_out: record.crowdedOut,
    bytes: bytesOf(record),
  };
}

const recordClass = z.enum(RECORD_CLASSES);

/** Throws MalformedError if another program has written what this one cannot read. */
export function fromRow(row: Row): DivergenceRecord {
  const where = `divergence ${row.id} of the database`;
  const record: DivergenceRecord = {
    id: row.id,
    vm: row.vm,
    timeMs: row.time_ms,
    epoch: row.epoch,
    flow: { text: row.flow, protocol: row.protocol, source: row.source, destination: row.destination },
    class: checkedAs(recordClass, row.class, `${where}: class`),
    waitedMs: row.waited_ms,
    action: row.action,
    detail: row.detail,
    repeats: row.repeats,
    crowdedOut: row.crowded_out,
  };
  if (row.source_port !== null) record.flow.sourcePort = row.source_port;
  if (row.destination_port !== null) record.flow.destinationPort = row.destination_port;
  if (row.stream_offset !== null) record.streamOffset = row.stream_offset;
  if (row.primary_offset !== null && row.secondary_offset !== null) {
    record.difference = {
      primaryFrameOffset: row.primary_offset,
      secondaryFrameOffset: row.secondary_offset,
    };
  }
  if (row.primary_frame !== null) record.primaryFrame = row.primary_frame;
  if (row.primary_cut !== null)
    record.primaryCut = jsonAs(frameCut, row.primary_cut, `${where}: primary_cut`);
  if (row.secondary_frame !== null) record.secondaryFrame = row.secondary_frame;
  if (row.secondary_cut !== null)
    record.secondaryCut = jsonAs(frameCut, row.secondary_cut, `${where}: secondary_cut`);
  if (row.checkpoint_epoch !== null) {
    record.checkpoint = {
      epoch: row.checkpoint_epoch,
      pauseMs: row.pause_ms ?? 0,
      totalMs: row.total_ms ?? 0,
    };
  }
  return record;
}
