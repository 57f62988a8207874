/**
 * The embedded witness: a compare-and-swap register per VM, on a third host, over HTTP.
 *
 *   GET /v1/vm/NAME                                            -> 200 record | 404
 *   PUT /v1/vm/NAME {expectedRevision, record}                 -> 200 record | 409 the record as it is | 400
 *
 * A write is answered only after it is on disk (file synced, renamed, directory synced): an answer that a power cut
 * could take back would allow two primaries.
 */
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { casRequest, type VmRecord, vmRecord } from "./record.ts";

const VM_PATH = /^\/v1\/vm\/([a-z0-9][a-z0-9-]{0,31})$/;
const BODY_BYTES_MAX = 4096;
/** Bounds the memory and the directory; far above what a pair of hosts runs. */
const RECORDS_MAX = 4096;

/** Records in a directory, one file each. */
export class RecordStore {
  readonly #records = new Map<string, VmRecord>();

  constructor(private readonly directory: string) {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
  }

  get(vm: string): VmRecord | undefined {
    const cached = this.#records.get(vm);
    if (cached !== undefined) return cached;
    const path = this.#path(vm);
    if (!existsSync(path)) return undefined;
    const record = vmRecord.parse(JSON.parse(readFileSync(path, "utf8")));
    this.#records.set(vm, record);
    return record;
  }

  /** Writes `next` if the stored revision is `expectedRevision`; returns the record that is stored afterwards. */
  compareAndSwap(vm: string, expectedRevision: number, next: Omit<VmRecord, "revision">) {
    const current = this.get(vm);
    if ((current?.revision ?? 0) !== expectedRevision) return { swapped: false as const, current };
    if (current === undefined && this.#records.size >= RECORDS_MAX) {
      throw new Error(`the witness holds ${RECORDS_MAX} records already`);
    }
    const record: VmRecord = { ...next, revision: expectedRevision + 1 };
    this.#persist(vm, record);
    this.#records.set(vm, record);
    return { swapped: true as const, current: record };
  }

  #path(vm: string): string {
    return join(this.directory, `${vm}.json`);
  }

  #persist(vm: string, record: VmRecord): void {
    const temporary = `${this.#path(vm)}.new`;
    const fd = openSync(temporary, "w", 0o600);
    try {
      writeSync(fd, JSON.stringify(record));
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(temporary, this.#path(vm));
    const directory = openSync(this.directory, "r");
    try {
      fsyncSync(directory);
    } finally {
      closeSync(directory);
    }
  }
}

/** Starts the witness; `port` 0 takes a free one. */
export function serveWitness(options: { host: string; port: number; directory: string }) {
  const store = new RecordStore(options.directory);
  return Bun.serve({
    hostname: options.host,
    port: options.port,
    async fetch(request) {
      const vm = VM_PATH.exec(new URL(request.url).pathname)?.[1];
      if (vm === undefined) return Response.json({ error: "no such resource" }, { status: 404 });
      if (request.method === "GET") {
        const record = store.get(vm);
        return record
          ? Response.json(record)
          : Response.json({ error: "no record of this VM" }, { status: 404 });
      }
      if (request.method !== "PUT") return Response.json({ error: "GET or PUT" }, { status: 405 });
      const body = await request.text();
      if (body.length > BODY_BYTES_MAX) return Response.json({ error: "body too large" }, { status: 413 });
      let parsed: ReturnType<typeof casRequest.safeParse>;
      try {
        parsed = casRequest.safeParse(JSON.parse(body));
      } catch {
        return Response.json({ error: "body is not JSON" }, { status: 400 });
      }
      if (!parsed.success) return Response.json({ error: parsed.error.message }, { status: 400 });
      const { swapped, current } = store.compareAndSwap(vm, parsed.data.expectedRevision, parsed.data.record);
      return Response.json(current ?? null, { status: swapped ? 200 : 409 });
    },
  });
}
