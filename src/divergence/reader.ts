/** Queries of a database of divergences. */
import { constants, Database } from "bun:sqlite";
import { existsSync } from "node:fs";
import {
  type DivergenceRecord,
  type DivergenceSource,
  LIST_LIMIT_DEFAULT,
  type ListOptions,
  TOP_LIMIT_DEFAULT,
  type TopBy,
  type TopEntry,
  type TopOptions,
} from "./record.ts";
import { COLUMNS, fromRow, type Row, schemaState } from "./schema.ts";

const TOP_COLUMNS: Record<TopBy, string> = { port: "port_key", protocol: "protocol", flow: "flow" };

export class DivergenceReader implements DivergenceSource {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  /**
   * Opens a file for reading only, while an agent writes to it or not.
   * Throws an Error with a sentence when there is no such file or it is not a database of divergences.
   */
  static open(path: string): DivergenceReader {
    if (!existsSync(path)) {
      throw new Error(
        `there is no database of divergences at ${path}; the agent stores it in agent.state_directory`,
      );
    }
    let database: Database | undefined;
    let reason: string;
    try {
      database = openForReading(path);
      const state = schemaState(database);
      if (state === "usable") return new DivergenceReader(database);
      reason = state === "empty" ? "it is empty" : state.unusable;
    } catch (error) {
      reason = (error as Error).message;
    }
    database?.close();
    throw new Error(`${path} cannot be read as a database of divergences: ${reason}`);
  }

  list(options: ListOptions = {}): DivergenceRecord[] {
    const { vm = null, since = null, limit = LIST_LIMIT_DEFAULT } = options;
    const query = this.#database.query<Row, [string | null, number | null, number]>(
      `select ${COLUMNS} from divergences
       where (?1 is null or vm = ?1) and (?2 is null or time_ms >= ?2) order by id desc limit ?3`,
    );
    return query.all(vm, since, limit).map(fromRow);
  }

  get(id: number): DivergenceRecord | undefined {
    const row = this.#database
      .query<Row, [number]>(`select ${COLUMNS} from divergences where id = ?`)
      .get(id);
    return row === null ? undefined : fromRow(row);
  }

  top(options: TopOptions): TopEntry[] {
    const { by, vm = null, limit = TOP_LIMIT_DEFAULT } = options;
    // A checkpoint that answers several divergences is one: first per checkpoint, then together.
    // checkpoint_epoch is null for what no checkpoint has answered; those are one group, which
    // count(checkpoint_epoch) leaves out.
    const query = this.#database.query<TopEntry, [string | null, number]>(
      `select key, sum(n) as divergences, count(checkpoint_epoch) as checkpoints,
              coalesce(sum(pause_ms), 0) as pauseMs, max(time_ms) as lastTimeMs
       from (select ${TOP_COLUMNS[by]} as key, vm, checkpoint_epoch, sum(1 + repeats) as n,
                    max(pause_ms) as pause_ms, max(time_ms) as time_ms
             from divergences where ?1 is null or vm = ?1
             group by 1, vm, checkpoint_epoch)
       group by key order by divergences desc, lastTimeMs desc, key limit ?2`,
    );
    return query.all(vm, limit);
  }

  close(): void {
    this.#database.close();
  }
}

/**
 * Reading a database in WAL mode needs its shared memory file, which a reader without write access to the
 * directory cannot make. When nobody has the database open (no log beside it), it can be read as the fixed
 * file that it then is.
 */
function openForReading(path: string): Database {
  const database = new Database(path, { readonly: true });
  try {
    database.query("select count(*) from sqlite_schema").get();
    return database;
  } catch (error) {
    database.close();
    const refused = /^SQLITE_(CANTOPEN|READONLY)/.test(String((error as { code?: unknown }).code));
    if (!refused || existsSync(`${path}-wal`)) throw error;
    const uri = `file:${encodeURI(path).replace(/[?#]/g, encodeURIComponent)}?immutable=1`;
    return new Database(uri, constants.SQLITE_OPEN_READONLY | constants.SQLITE_OPEN_URI);
  }
}
