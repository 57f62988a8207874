/**
 * The witness's records on disk: SQLite, each write synced before it is answered. An answer that a power cut
 * could take back would allow two primaries.
 */
import { Database } from "bun:sqlite";
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
} from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { identifier } from "../failover/vm_record.ts";
import { foreignRecord, samePair } from "./arbiter.ts";
import type { CasRequest, StoredRecord } from "./witness_protocol.ts";

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
    -- The two agents; NULL until the first write after an import.
    agent_a TEXT,
    agent_b TEXT,
    -- Names the last write, so that it can be sent again.
    write_id TEXT NOT NULL
  ) STRICT`;
/** Bounds the file; far above what the pairs of one site run. */
const RECORDS_MAX = 4096;
/** Another process (a backup, an administrator's shell) may hold the file for this long. */
const BUSY_TIMEOUT_MS = 1_000;

/** SQLite lists every page it misses. */
const DAMAGE_CHARACTERS_MAX = 200;

/** A record of the time when each was a JSON file of its own. */
const legacyRecord = z.strictObject({
  revision: z.number().int().min(1),
  term: z.number().int().min(0),
  holder: identifier,
  replicaValid: z.boolean(),
});

export type CasOutcome =
  | { outcome: "swapped"; stored: StoredRecord }
  | { outcome: "conflict"; current: StoredRecord | undefined }
  | { outcome: "forbidden"; reason: string };

interface Row {
  revision: number;
  term: number;
  generation: number;
  holder: string;
  replica_valid: number;
  agent_a: string | null;
  agent_b: string | null;
  write_id: string;
}

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
      store.#importLegacy(directory);
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
    const row = this.#row(vm);
    return row === null ? undefined : toStored(row);
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
    const row = this.#row(vm);
    const current = row === null ? undefined : toStored(row);
    const reason = forbidden(vm, request, current?.agents ?? undefined, writer);
    if (reason !== undefined) return { outcome: "forbidden", reason };
    if (current !== undefined && row?.write_id === write) return { outcome: "swapped", stored: current };
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

  #row(vm: string): Row | null {
    return this.#database.query("SELECT * FROM record WHERE vm = ?").get(vm) as Row | null;
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
      throw new Error(
        `${this.path} was written by a newer colo-agent (format ${version}, this one knows ` +
          `${SCHEMA_VERSION}): run that version or a later one`,
      );
    }
    const check = this.#pragma("integrity_check");
    if (check !== "ok") throw damaged(this.path, String(check));
    this.#database.run("PRAGMA journal_mode = WAL");
    // In WAL mode FULL syncs the log at each commit; NORMAL would not.
    this.#database.run("PRAGMA synchronous = FULL");
  }

  /**
   * Takes over the JSON files of an older witness, with "replica invalid": they know no generation, so no
   * replica can be told from a stale one. The files are renamed.
   */
  #importLegacy(directory: string): void {
    const files = readdirSync(directory).filter((name) => /^[a-z0-9][a-z0-9-]{0,31}\.json$/.test(name));
    for (const file of files) {
      const path = join(directory, file);
      let legacy: z.output<typeof legacyRecord>;
      try {
        legacy = legacyRecord.parse(JSON.parse(readFileSync(path, "utf8")));
      } catch (error) {
        throw new Error(
          `${path} is neither a record of an older witness nor any other file that belongs here: ` +
            "repair it, or move it away if that VM no longer exists",
          { cause: error },
        );
      }
      this.#database
        .query(
          `INSERT OR IGNORE INTO record VALUES
            ($vm, $revision, $term, 0, $holder, 0, NULL, NULL, 'import')`,
        )
        .run({
          vm: file.slice(0, -".json".length),
          revision: legacy.revision + 1,
          term: legacy.term,
          holder: legacy.holder,
        });
      renameSync(path, `${path}.imported`);
    }
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

function damaged(path: string, what: string): Error {
  return new Error(
    `${path} is damaged (${what.replace(/\s+/g, " ").slice(0, DAMAGE_CHARACTERS_MAX)}): stop both agents ` +
      "of each VM that this witness serves, move the file away, " +
      "start the witness, then start the agent of the VM's current host first",
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

function toStored(row: Row): StoredRecord {
  return {
    record: {
      revision: row.revision,
      term: row.term,
      generation: row.generation,
      holder: row.holder,
      replicaValid: row.replica_valid === 1,
    },
    agents: row.agent_a === null || row.agent_b === null ? null : [row.agent_a, row.agent_b],
  };
}
