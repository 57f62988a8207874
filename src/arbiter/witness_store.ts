/**
 * The witness's records on disk: SQLite, each write synced before it is answered. An answer that a power cut
 * could take back would allow two primaries.
 */
import { Database } from "bun:sqlite";
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { Problem } from "../errors/problem.ts";
import { foreignRecord, samePair } from "./arbiter.ts";
import { type CasRequest, type StoredRecord, storedRecord } from "./witness_protocol.ts";

/** "COLO": tells our file from any other SQLite database. */
const APPLICATION_ID = 0x434f4c4f;
const SCHEMA_VERSION = 1;
const SCHEMA = `
  CREATE TABLE record (
    vm TEXT PRIMARY KEY,
    revision INTEGER NOT NULL,
    term INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    holder TEXT NOT NULL,
    replica_valid INTEGER NOT NULL,
    -- The two agents of the VM.
    agent_a TEXT NOT NULL,
    agent_b TEXT NOT NULL,
    -- Names the last write, so that it can be sent again.
    write_id TEXT NOT NULL
  ) STRICT`;
/** Bounds the file; far above what the pairs of one site run. */
const RECORDS_MAX = 4096;
/** Another process (a backup, an administrator's shell) may hold the file for this long. */
const BUSY_TIMEOUT_MS = 1_000;

/** SQLite lists every page it misses. */
const DAMAGE_CHARACTERS_MAX = 200;

type CasOutcome =
  | { outcome: "swapped"; stored: StoredRecord }
  | { outcome: "conflict"; current: StoredRecord | undefined }
  | { outcome: "forbidden"; reason: string };

/** A row of the table. Another program may have written it. */
const row = z.object({
  revision: z.number(),
  term: z.number(),
  generation: z.number(),
  holder: z.string(),
  replica_valid: z.union([z.literal(0), z.literal(1)]),
  agent_a: z.string(),
  agent_b: z.string(),
  write_id: z.string(),
});

export class WitnessStore {
  readonly #database: Database;

  private constructor(
    readonly path: string,
    database: Database,
  ) {
    this.#database = database;
  }

  /**
   * Opens or makes the database in `directory`. Throws an Error that says what is wrong with it and what to
   * do.
   */
  static open(directory: string): WitnessStore {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    const path = join(directory, "witness.sqlite");
    if (!existsSync(path)) createDatabase(directory, path);
    let database: Database | undefined;
    try {
      database = new Database(path, { create: false, readwrite: true, strict: true });
      const store = new WitnessStore(path, database);
      store.#prepare();
      return store;
    } catch (error) {
      database?.close();
      const { code, message } = error as { code?: string; message: string };
      if (code === "SQLITE_CORRUPT" || code === "SQLITE_NOTADB") throw damaged(path, message);
      throw code === undefined ? error : new Error(`cannot use ${path}: ${message}`, { cause: error });
    }
  }

  get records(): number {
    return (this.#database.query("SELECT count(*) AS n FROM record").get() as { n: number }).n;
  }

  get(vm: string): StoredRecord | undefined {
    return this.#row(vm)?.stored;
  }

  /**
   * `writer`: the name in the client's certificate, undefined without TLS. When it returns, the write is on
   * disk. Throws when the disk does not take it.
   */
  compareAndSwap(vm: string, request: CasRequest, writer: string | undefined): CasOutcome {
    return this.#database.transaction(() => this.#swap(vm, request, writer)).immediate();
  }

  close(): void {
    this.#database.close();
  }

  #swap(vm: string, request: CasRequest, writer: string | undefined): CasOutcome {
    const { record, agents, expectedRevision, write } = request;
    const found = this.#row(vm);
    const current = found?.stored;
    const reason = forbidden(vm, request, current?.agents, writer);
    if (reason !== undefined) return { outcome: "forbidden", reason };
    if (current !== undefined && found?.write === write) return { outcome: "swapped", stored: current };
    if ((current?.record.revision ?? 0) !== expectedRevision) return { outcome: "conflict", current };
    if (current === undefined && this.records >= RECORDS_MAX) {
      return { outcome: "forbidden", reason: `the witness holds ${RECORDS_MAX} records already` };
    }
    const next = { ...record, revision: expectedRevision + 1 };
    this.#database
      .query(
        `INSERT OR REPLACE INTO record VALUES
          ($vm, $revision, $term, $generation, $holder, $replicaValid, $a, $b, $write)`,
      )
      .run({ ...next, replicaValid: Number(next.replicaValid), vm, a: agents[0], b: agents[1], write });
    return { outcome: "swapped", stored: { record: next, agents } };
  }

  /** Throws an Error if the row is no record. */
  #row(vm: string): { stored: StoredRecord; write: string } | undefined {
    const found: unknown = this.#database.query("SELECT * FROM record WHERE vm = ?").get(vm);
    if (found === null) return undefined;
    try {
      const { agent_a, agent_b, replica_valid, write_id, ...numbers } = row.parse(found);
      const record = { ...numbers, replicaValid: replica_valid === 1 };
      return { stored: storedRecord.parse({ record, agents: [agent_a, agent_b] }), write: write_id };
    } catch (error) {
      throw damaged(this.path, `the row of VM ${vm} is no record`, error);
    }
  }

  #pragma(name: string): unknown {
    return Object.values(this.#database.query(`PRAGMA ${name}`).get() as object)[0];
  }

  #prepare(): void {
    this.#database.run(`PRAGMA busy_timeout = ${BUSY_TIMEOUT_MS}`);
    // Before anything is written: what is not ours stays as it is.
    if (this.#pragma("application_id") !== APPLICATION_ID) {
      throw damaged(this.path, "it is not a witness's database");
    }
    const version = Number(this.#pragma("user_version"));
    if (version > SCHEMA_VERSION) {
      throw new Problem(
        `${this.path} was written by a newer colo-agent (format ${version}, this one knows ` +
          `${SCHEMA_VERSION})`,
        "run that version or a later one",
      );
    }
    const check = this.#pragma("integrity_check");
    if (check !== "ok") throw damaged(this.path, String(check));
    this.#database.run("PRAGMA journal_mode = WAL");
    // In WAL mode FULL syncs the log at each commit; NORMAL would not.
    this.#database.run("PRAGMA synchronous = FULL");
  }
}

/** The file gets its name only when it is whole: an empty one is damage, not a new witness. */
function createDatabase(directory: string, path: string): void {
  const unfinished = `${path}.new`;
  rmSync(unfinished, { force: true });
  const database = new Database(unfinished, { create: true, strict: true });
  try {
    database.run("PRAGMA synchronous = FULL");
    database
      .transaction(() => {
        database.run(SCHEMA);
        database.run(`PRAGMA application_id = ${APPLICATION_ID}`);
        database.run(`PRAGMA user_version = ${SCHEMA_VERSION}`);
      })
      .immediate();
  } finally {
    database.close();
  }
  renameSync(unfinished, path);
  syncDirectory(directory);
}

function syncDirectory(path: string): void {
  const fd = openSync(path, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function damaged(path: string, what: string, cause?: unknown): Problem {
  return new Problem(
    `${path} is damaged (${what.replace(/\s+/g, " ").slice(0, DAMAGE_CHARACTERS_MAX)})`,
    "stop both agents of each VM that this witness serves, move the file away, start the witness, then " +
      "start the agent of the VM's current host first",
    { cause },
  );
}

function forbidden(
  vm: string,
  { record, agents }: CasRequest,
  owners: readonly string[] | undefined,
  writer: string | undefined,
): string | undefined {
  if (owners !== undefined && !samePair(owners, agents)) return foreignRecord(vm, owners, agents);
  if (writer !== undefined && !agents.includes(writer)) {
    return `the certificate is of ${writer}, which is not one of VM ${vm}'s agents (${agents.join(" and ")})`;
  }
  if (!agents.includes(record.holder)) {
    return `the holder ${record.holder} is not one of VM ${vm}'s agents (${agents.join(" and ")})`;
  }
  return undefined;
}
