/**
 * Where the agent keeps divergences: SQLite, bounded, oldest go first.
 *
 * It is called from the thread that sends heartbeats, so:
 * - add() and complete() only note something in memory; soon after, one transaction writes all of it.
 * - nothing waits for the disk (synchronous = off). After a loss of power the file may be damaged; it is then
 *   moved aside, for no record in it is worth a heartbeat.
 * - a flow that diverges again within a second counts as a repeat; of new ones, more than `perSecondMax` in a
 *   second are only counted.
 * - no error of the database is anybody else's: it is logged, and what could not be written is lost.
 */
import { Database } from "bun:sqlite";
import { closeSync, existsSync, mkdirSync, openSync, renameSync, rmSync } from "node:fs";
import { dirname } from "node:path";
import type { Logger } from "../host/log.ts";
import { keepFrame } from "./kept_frame.ts";
import { DivergenceReader } from "./reader.ts";
import {
  type DivergenceRecord,
  type DivergenceSource,
  type ListOptions,
  type NewDivergence,
  type Outcome,
  STORED_PER_SECOND,
  type TopEntry,
  type TopOptions,
} from "./record.ts";
import { CREATE_TABLE, INSERT, SCHEMA_VERSION, schemaState, toRow } from "./schema.ts";

const FLUSH_DELAY_MS = 100;
const PENDING_MAX = 64;
const REPEAT_WINDOW_MS = 1_000;
/** The log is not filled with the same complaint. */
const COMPLAINT_INTERVAL_MS = 60_000;
/** The agent waits no longer for another process that locks the file. */
const BUSY_TIMEOUT_MS = 50;
const WAL_BYTES_MAX = 4 * 2 ** 20;
const PRUNE_BATCH = 64;

/** SQLite's codes for a file that is no sound database, as opposed to one that cannot be reached just now. */
const DAMAGED_CODES = /^SQLITE_(CORRUPT|NOTADB|FORMAT|IOERR_SHORT_READ|IOERR_CORRUPTFS)/;
/**
 * For a record that does not fit the table: a mistake of its maker, which must not cost the others of its
 * batch.
 */
const MISFIT_CODES = /^SQLITE_(CONSTRAINT|MISMATCH|TOOBIG)/;

export interface DivergenceStoreOptions {
  /** Its directory is made if need be. */
  path: string;
  /** Records kept. Default 1000. */
  countMax?: number;
  /** Bytes of frames and texts kept. Default 16 MiB; the file is a few MiB larger. */
  bytesMax?: number;
  /**
   * New records a second; more are counted in `crowdedOut` of the last one. Default {@link
   * STORED_PER_SECOND}.
   */
  perSecondMax?: number;
  log?: Pick<Logger, "warn" | "error">;
}

interface Change extends Outcome {
  repeats: number;
  crowdedOut: number;
}

export class DivergenceStore implements DivergenceSource {
  readonly path: string;
  readonly #countMax: number;
  readonly #bytesMax: number;
  readonly #perSecondMax: number;
  readonly #log: Pick<Logger, "warn" | "error"> | undefined;
  #database!: Database;
  #reader!: DivergenceReader;
  #nextId = 1;
  #count = 0;
  #bytes = 0;
  /** Not written yet, by number. */
  #pending = new Map<number, DivergenceRecord>();
  /** Of records that are written already. */
  #changes = new Map<number, Change>();
  /** Newest record of each VM, class and flow, for a second. */
  #recent = new Map<string, { id: number; timeMs: number }>();
  #second = { startMs: Number.NEGATIVE_INFINITY, records: 0, lastId: 0 };
  #timer: Timer | undefined;
  #complainedMs = Number.NEGATIVE_INFINITY;
  #closed = false;

  /**
   * Never throws for what is wrong with the file: it is moved aside, or records are kept in memory; both are
   * logged.
   */
  constructor(options: DivergenceStoreOptions) {
    this.path = options.path;
    this.#countMax = Math.max(1, options.countMax ?? 1000);
    this.#bytesMax = options.bytesMax ?? 16 * 2 ** 20;
    this.#perSecondMax = Math.max(1, options.perSecondMax ?? STORED_PER_SECOND);
    this.#log = options.log;
    this.#open();
  }

  /**
   * Stores a divergence and returns its number: the first one's for a repeat, 0 beyond the limit of this
   * second.
   */
  add(divergence: NewDivergence): number {
    if (this.#closed) return 0;
    const { timeMs } = divergence;
    const key = `${divergence.vm}\n${divergence.class}\n${divergence.flow.text}`;
    const recent = this.#recent.get(key);
    if (recent !== undefined && within(timeMs, recent.timeMs)) {
      this.#count1(recent.id, "repeats");
      return recent.id;
    }
    if (!within(timeMs, this.#second.startMs)) this.#second = { startMs: timeMs, records: 0, lastId: 0 };
    if (this.#second.records >= this.#perSecondMax) {
      this.#count1(this.#second.lastId, "crowdedOut");
      return 0;
    }
    const id = this.#nextId++;
    this.#second.records++;
    this.#second.lastId = id;
    this.#recent.set(key, { id, timeMs });
    this.#pending.set(id, { ...divergence, ...keptFrames(divergence), id, repeats: 0, crowdedOut: 0 });
    this.#schedule();
    return id;
  }

  /** Adds what has become of a divergence. Numbers that are not kept (0 among them) are ignored. */
  complete(id: number, outcome: Outcome): void {
    if (this.#closed || id <= 0) return;
    const { action, checkpoint } = outcome;
    const target = this.#pending.get(id) ?? this.#changeOf(id);
    if (action !== undefined) target.action = action;
    if (checkpoint !== undefined) target.checkpoint = { ...checkpoint };
    this.#schedule();
  }

  list(options: ListOptions = {}): DivergenceRecord[] {
    return this.#read([], () => this.#reader.list(options));
  }

  get(id: number): DivergenceRecord | undefined {
    return this.#read(undefined, () => this.#reader.get(id));
  }

  top(options: TopOptions): TopEntry[] {
    return this.#read([], () => this.#reader.top(options));
  }

  /** Writes what has been noted. Happens by itself; of use before another process reads the file. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#closed || (this.#pending.size === 0 && this.#changes.size === 0)) return;
    try {
      this.#write();
    } catch (error) {
      if (!this.#recover(error)) this.#complain("divergences could not be written and are lost", error);
      else {
        try {
          this.#write();
        } catch (second) {
          this.#complain("divergences could not be written and are lost", second);
        }
      }
    }
    this.#pending.clear();
    this.#changes.clear();
    this.#forgetOld();
  }

  close(): void {
    if (this.#closed) return;
    this.flush();
    this.#closed = true;
    this.#database.close();
  }

  #read<T>(otherwise: T, read: () => T): T {
    if (this.#closed) return otherwise;
    this.flush();
    try {
      return read();
    } catch (error) {
      if (!this.#recover(error)) this.#complain("divergences cannot be read", error);
      return otherwise;
    }
  }

  #count1(id: number, what: "repeats" | "crowdedOut"): void {
    const target = this.#pending.get(id) ?? this.#changeOf(id);
    target[what]++;
    this.#schedule();
  }

  #changeOf(id: number): Change {
    let change = this.#changes.get(id);
    if (change === undefined) {
      change = { repeats: 0, crowdedOut: 0 };
      this.#changes.set(id, change);
    }
    return change;
  }

  #schedule(): void {
    if (this.#pending.size + this.#changes.size >= PENDING_MAX) {
      this.flush();
      return;
    }
    if (this.#timer !== undefined) return;
    this.#timer = setTimeout(() => this.flush(), FLUSH_DELAY_MS);
    this.#timer.unref();
  }

  #write(): void {
    const database = this.#database;
    let { count, bytes } = { count: this.#count, bytes: this.#bytes };
    const insert = database.query(INSERT);
    const change = database.query(
      `update divergences set repeats = repeats + $repeats, crowded_out = crowded_out + $crowdedOut,
         action = coalesce($action, action), checkpoint_epoch = coalesce($epoch, checkpoint_epoch),
         pause_ms = coalesce($pauseMs, pause_ms), total_ms = coalesce($totalMs, total_ms) where id = $id`,
    );
    database.transaction(() => {
      for (const record of this.#pending.values()) {
        const row = toRow(record);
        try {
          insert.run({ ...row });
        } catch (error) {
          if (!MISFIT_CODES.test(codeOf(error))) throw error;
          this.#complain("a divergence does not fit its table and is lost", error);
          continue;
        }
        count++;
        bytes += row.bytes;
      }
      for (const [id, { repeats, crowdedOut, action, checkpoint }] of this.#changes) {
        change.run({
          id,
          repeats,
          crowdedOut,
          action: action ?? null,
          epoch: checkpoint?.epoch ?? null,
          pauseMs: checkpoint?.pauseMs ?? null,
          totalMs: checkpoint?.totalMs ?? null,
        });
      }
      ({ count, bytes } = this.#prune(count, bytes));
    })();
    this.#count = count;
    this.#bytes = bytes;
  }

  /** Deletes the oldest records until the limits are kept. The newest one always stays. */
  #prune(count: number, bytes: number): { count: number; bytes: number } {
    const oldest = this.#database.query<{ id: number; bytes: number }, [number]>(
      "select id, bytes from divergences order by id limit ?",
    );
    const remove = this.#database.query("delete from divergences where id <= ?");
    while (count > 1 && (count > this.#countMax || bytes > this.#bytesMax)) {
      let last = 0;
      for (const row of oldest.all(PRUNE_BATCH)) {
        if (count <= 1 || (count <= this.#countMax && bytes <= this.#bytesMax)) break;
        last = row.id;
        count--;
        bytes -= row.bytes;
      }
      if (last === 0) break; // another program has deleted records; counted again at the next start
      remove.run(last);
    }
    return { count, bytes };
  }

  #forgetOld(): void {
    const newestMs = this.#second.startMs;
    for (const [key, { timeMs }] of this.#recent) {
      if (!within(newestMs, timeMs) && !within(timeMs, newestMs)) this.#recent.delete(key);
    }
  }

  #open(): void {
    try {
      this.#use(openFile(this.path));
      return;
    } catch (error) {
      if (isDamage(error)) {
        try {
          this.#use(this.#startAnew((error as Error).message));
          return;
        } catch (second) {
          this.#openMemory(second);
          return;
        }
      }
      this.#openMemory(error);
    }
  }

  #startAnew(reason: string): Database {
    const aside = moveAside(this.path);
    this.#log?.warn("the database of divergences cannot be used and was renamed; a new one is begun", {
      path: this.path,
      movedTo: aside,
      reason,
    });
    return openFile(this.path);
  }

  #openMemory(error: unknown): void {
    this.#log?.error(
      "the database of divergences cannot be opened; divergences are kept in memory until the agent ends. " +
        "Make its directory writable and restart the agent",
      { path: this.path, reason: (error as Error).message },
    );
    const database = new Database(":memory:", { strict: true });
    createSchema(database);
    this.#use(database);
  }

  #use(database: Database): void {
    this.#database = database;
    this.#reader = new DivergenceReader(database);
    const totals = database
      .query<{ count: number; bytes: number }, []>(
        "select count(*) as count, coalesce(sum(bytes), 0) as bytes from divergences",
      )
      .get();
    this.#count = totals?.count ?? 0;
    this.#bytes = totals?.bytes ?? 0;
    const last = database
      .query<{ seq: number }, []>("select seq from sqlite_sequence where name = 'divergences'")
      .get();
    this.#nextId = Math.max(this.#nextId, (last?.seq ?? 0) + 1);
  }

  /** After an error: begins a new file if the old one is damaged. True if it can be tried again. */
  #recover(error: unknown): boolean {
    if (!isDamage(error)) return false;
    try {
      this.#database.close();
    } catch {
      // A damaged database may refuse even that.
    }
    try {
      this.#use(this.#startAnew((error as Error).message));
    } catch (second) {
      this.#openMemory(second);
    }
    return true;
  }

  #complain(message: string, error: unknown): void {
    const nowMs = performance.now();
    if (nowMs - this.#complainedMs < COMPLAINT_INTERVAL_MS) return;
    this.#complainedMs = nowMs;
    this.#log?.warn(message, { path: this.path, reason: (error as Error).message });
  }
}

function within(timeMs: number, sinceMs: number): boolean {
  return timeMs >= sinceMs && timeMs - sinceMs < REPEAT_WINDOW_MS;
}

function keptFrames(divergence: NewDivergence): Partial<NewDivergence> {
  const { primaryFrame, primaryCut, secondaryFrame, secondaryCut, difference } = divergence;
  const kept: Partial<NewDivergence> = {};
  if (primaryFrame !== undefined && primaryCut === undefined) {
    const { bytes, cut } = keepFrame(primaryFrame, difference?.primaryFrameOffset);
    kept.primaryFrame = bytes;
    if (cut !== undefined) kept.primaryCut = cut;
  }
  if (secondaryFrame !== undefined && secondaryCut === undefined) {
    const { bytes, cut } = keepFrame(secondaryFrame, difference?.secondaryFrameOffset);
    kept.secondaryFrame = bytes;
    if (cut !== undefined) kept.secondaryCut = cut;
  }
  return kept;
}

class DamagedError extends Error {
  override name = "DamagedError";
}

function codeOf(error: unknown): string {
  return String((error as { code?: unknown }).code);
}

function isDamage(error: unknown): boolean {
  return error instanceof DamagedError || DAMAGED_CODES.test(codeOf(error));
}

/** What the file holds; a table that is not ours (SQLITE_ERROR: no such column) is as good as damaged. */
function stateOf(database: Database): "empty" | "usable" {
  let state: ReturnType<typeof schemaState>;
  try {
    state = schemaState(database);
  } catch (error) {
    if (codeOf(error) !== "SQLITE_ERROR") throw error;
    throw new DamagedError((error as Error).message, { cause: error });
  }
  if (typeof state === "object") throw new DamagedError(state.unusable);
  return state;
}

function openFile(path: string): Database {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  // Records hold what VMs sent: for the agent's user only. SQLite gives its log the mode of the file.
  if (!existsSync(path)) closeSync(openSync(path, "a", 0o600));
  const database = new Database(path, { readwrite: true, create: true, strict: true });
  try {
    database.run(`pragma busy_timeout = ${BUSY_TIMEOUT_MS}`);
    const state = stateOf(database);
    database.run("pragma journal_mode = wal");
    database.run("pragma synchronous = off");
    database.run(`pragma journal_size_limit = ${WAL_BYTES_MAX}`);
    if (state === "empty") createSchema(database);
    return database;
  } catch (error) {
    database.close();
    throw error;
  }
}

function createSchema(database: Database): void {
  database.transaction(() => {
    database.run(CREATE_TABLE);
    database.run(`pragma user_version = ${SCHEMA_VERSION}`);
  })();
}

/** One damaged file is kept, the newest. */
function moveAside(path: string): string {
  const aside = `${path}.damaged`;
  for (const suffix of ["", "-wal", "-shm"]) {
    rmSync(aside + suffix, { force: true, recursive: true });
    if (existsSync(path + suffix)) renameSync(path + suffix, aside + suffix);
  }
  return aside;
}
