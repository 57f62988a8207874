/**
 * The TCP connections whose numbers the programs rewrite (bpf/rewrite.h): learned and used there, counted,
 * forgotten and handed to another host here.
 *
 * A program may learn a connection at any time. Nothing here stops that: an entry is looked at again when it
 * is taken out, and `connections_kept` is cleared before the map is found empty.
 */
import { BpfMap } from "./bpf_map.ts";
import { CONNECTION, CONNECTION_BYTES, CONNECTION_FLAG, CONNECTION_KEY_BYTES } from "./layout.ts";
import { bootTimeNs, bootTimeNsNumber } from "./libc.ts";
import type { StateView } from "./state_view.ts";

const BATCH_CONNECTIONS = 1024;
const ENTRY_BYTES = CONNECTION_KEY_BYTES + CONNECTION_BYTES;

export class Connections {
  readonly #map: BpfMap;

  /**
   * @param fd of the map `connections`; stays the caller's
   * @param state of the same data plane
   */
  constructor(
    fd: number,
    private readonly state: Pick<StateView, "rewriteEpoch" | "connectionsKept">,
  ) {
    this.#map = new BpfMap(fd, "the connections", { batch: BATCH_CONNECTIONS });
  }

  /** How many there are, those of past epochs included. */
  count(): number {
    let count = 0;
    this.#map.forEach(() => {
      count++;
    });
    return count;
  }

  /**
   * Forgets connections.
   *
   * @param olderThanEpoch only those learned in another epoch than this, and none that were inherited;
   *   without it, all
   * @returns how many were forgotten
   */
  clear(olderThanEpoch?: number): number {
    const { view } = this.#map;
    return this.#remove((value) => {
      if (olderThanEpoch === undefined) return true;
      const inherited = (view.getUint32(value + CONNECTION.flags, true) & CONNECTION_FLAG.INHERITED) !== 0;
      return !inherited && view.getUint32(value + CONNECTION.epoch, true) !== olderThanEpoch;
    });
  }

  /**
   * Forgets connections that have ended: both sides have sent FIN, or one RST, or the handshake was never
   * completed, and nothing of it has been seen since. Without regular calls the map fills up (counter
   * connection_full).
   *
   * @param ended.closedForMs how long ago the last segment of an ended connection was; at least as long as
   *   the last segments may be sent again (twice the maximum segment lifetime of RFC 9293, 3.4.2)
   * @param ended.idleForMs the same for any other connection, whose ends may both have vanished without a
   *   word
   * @returns how many were forgotten
   */
  collect(ended: { closedForMs: number; idleForMs: number }): number {
    const { view } = this.#map;
    if (!this.state.connectionsKept) return 0;
    const { KNOWN, RESET, GUEST_FIN, CLIENT_FIN } = CONNECTION_FLAG;
    const now = bootTimeNsNumber();
    return this.#remove((value) => {
      const flags = view.getUint32(value + CONNECTION.flags, true);
      const isClosed =
        (flags & KNOWN) === 0 ||
        (flags & RESET) !== 0 ||
        (flags & (GUEST_FIN | CLIENT_FIN)) === (GUEST_FIN | CLIENT_FIN);
      const silentNs = now - Number(view.getBigUint64(value + CONNECTION.last_seen_ns, true));
      return silentNs > (isClosed ? ended.closedForMs : ended.idleForMs) * 1e6;
    });
  }

  /**
   * The connections that this host rewrites because its VM took over earlier, for {@link import} on a new
   * secondary. To be called while the VM is stopped: a connection that it opens afterwards may have the same
   * addresses and ports.
   */
  export(): Uint8Array {
    const { view, bytes } = this.#map;
    const epoch = this.state.rewriteEpoch;
    const entries: Uint8Array[] = [];
    this.#map.forEach((key, value) => {
      const flags = view.getUint32(value + CONNECTION.flags, true);
      const valid =
        (flags & CONNECTION_FLAG.INHERITED) !== 0 || view.getUint32(value + CONNECTION.epoch, true) === epoch;
      if (!valid || (flags & CONNECTION_FLAG.KNOWN) === 0) return;
      view.setUint32(value + CONNECTION.flags, flags | CONNECTION_FLAG.INHERITED, true);
      entries.push(
        bytes.slice(key, key + CONNECTION_KEY_BYTES),
        bytes.slice(value, value + CONNECTION_BYTES),
      );
    });
    return new Uint8Array(Buffer.concat(entries));
  }

  /**
   * Replaces all connections by those that the primary's host exported. They are applied when this VM runs
   * alone or is a primary itself.
   *
   * @returns how many there are
   * @throws Error if `exported` is not from export(), or is more than the map holds
   */
  import(exported: Uint8Array): number {
    if (exported.length % ENTRY_BYTES !== 0) {
      throw new Error(
        `Exported connections come in entries of ${ENTRY_BYTES} bytes; these are ${exported.length} bytes.`,
      );
    }
    this.clear();
    const map = this.#map;
    const now = bootTimeNs();
    for (let at = 0; at < exported.length; at += ENTRY_BYTES) {
      map.bytes.set(exported.subarray(at, at + CONNECTION_KEY_BYTES), map.key);
      map.bytes.set(exported.subarray(at + CONNECTION_KEY_BYTES, at + ENTRY_BYTES), map.value);
      // The other host's CLOCK_BOOTTIME has nothing to do with this one's.
      map.view.setBigUint64(map.value + CONNECTION.last_seen_ns, now, true);
      map.update("Cannot take over a connection");
    }
    if (exported.length > 0) this.state.connectionsKept = true;
    return exported.length / ENTRY_BYTES;
  }

  close(): void {
    this.#map.close();
  }

  /**
   * Removes connections; `isOver` gets the offset of one in the map's memory. Returns how many were removed.
   */
  #remove(isOver: (value: number) => boolean): number {
    const map = this.#map;
    let removed = 0;
    let kept = false;
    map.forEach((key, value) => {
      if (!isOver(value)) {
        kept = true;
        return;
      }
      if (!map.take(key)) return;
      if (isOver(map.value)) {
        removed++;
        return;
      }
      // A new one on the same ports was learned since: it goes back, unless another has taken its place
      // already.
      map.restore(key);
      kept = true;
    });
    if (!kept) this.#forgetThatAnyAreKept();
    return removed;
  }

  /**
   * A connection may be learned at the same time: it is seen here, or the program that learns it sets the
   * flag.
   */
  #forgetThatAnyAreKept(): void {
    this.state.connectionsKept = false;
    if (this.count() > 0) this.state.connectionsKept = true;
  }
}
