/**
 * Replaces the elements of a set of nftables in one transaction, by a netlink message and its answer. A lease
 * is renewed ten times a second: that starts no process, and a refusal of the kernel is known at once.
 *
 * The messages are those of net/netfilter/nf_tables_api.c (nf_tables_newsetelem, nf_tables_delsetelem): a
 * batch that empties the set and fills it again takes effect as a whole. A frame meets the old elements or
 * the new ones.
 */
import { Arena, check, closeFd, EAGAIN, errno, libc, SystemError } from "./libc.ts";

const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const SOCK_NONBLOCK = 0o4000;
const NETLINK_NETFILTER = 12;

const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLM_F_CREATE = 0x400;
const NLMSG_ERROR = 2;
const NLA_F_NESTED = 0x8000;
const HEADER_BYTES = 16;

const NFNL_SUBSYS_NFTABLES = 10;
const NFNL_MSG_BATCH_BEGIN = 16;
const NFNL_MSG_BATCH_END = 17;
const NFT_MSG_NEWSETELEM = (NFNL_SUBSYS_NFTABLES << 8) | 12;
const NFT_MSG_DELSETELEM = (NFNL_SUBSYS_NFTABLES << 8) | 14;
const NFPROTO_UNSPEC = 0;
const NFPROTO_NETDEV = 5;

const LIST_TABLE = 1;
const LIST_SET = 2;
const LIST_ELEMENTS = 3;
const LIST_ELEM = 1;
const ELEM_KEY = 1;
const ELEM_TIMEOUT = 4;
const DATA_VALUE = 1;

const BUFFER_BYTES = 8192;

export class NftSet {
  readonly #fd: number;
  readonly #arena = new Arena(2 * BUFFER_BYTES);
  readonly #answers: number;
  #at = 0;
  #sequence = 0;

  /**
   * @param table of family netdev, in this thread's network namespace; it need not be there yet
   * @param set of a type of 4 bytes in the machine's byte order (iface_index, mark)
   */
  constructor(
    private readonly table: string,
    private readonly set: string,
  ) {
    const type = SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK;
    this.#fd = check(
      libc.socket(AF_NETLINK, type, NETLINK_NETFILTER),
      "Cannot open a netlink socket for nftables",
    );
    this.#arena.allocate(BUFFER_BYTES);
    this.#answers = this.#arena.allocate(BUFFER_BYTES);
  }

  /**
   * Makes `keys` the set's only elements.
   *
   * @param timeoutMs the kernel removes each of them after this time; for a set with `flags timeout`
   * @throws SystemError if the kernel refuses: without CAP_NET_ADMIN, or when the table is gone (ENOENT)
   */
  replace(keys: readonly number[], timeoutMs?: number): void {
    this.#at = 0;
    const first = this.#sequence + 1;
    this.#message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, () => undefined);
    this.#message(NFT_MSG_DELSETELEM, NLM_F_REQUEST | NLM_F_ACK, NFPROTO_NETDEV, 0, () => this.#names());
    if (keys.length > 0) {
      const flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
      this.#message(NFT_MSG_NEWSETELEM, flags, NFPROTO_NETDEV, 0, () => {
        this.#names();
        this.#nested(LIST_ELEMENTS, () => {
          for (const key of keys) this.#nested(LIST_ELEM, () => this.#element(key, timeoutMs));
        });
      });
    }
    this.#message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, () => undefined);
    check(
      libc.write(this.#fd, this.#arena.address, this.#at),
      `Cannot ask nftables to change the set ${this.set} of table ${this.table}`,
    );
    this.#readAnswers(first, keys.length > 0 ? 2 : 1);
  }

  close(): void {
    closeFd(this.#fd);
    this.#arena.close();
  }

  /** The kernel has answered when write() returns (netlink_rcv_skb runs in the sender's call). */
  #readAnswers(first: number, count: number): void {
    const { view, address } = this.#arena;
    let error = 0;
    let acknowledged = 0;
    for (;;) {
      const bytes = Number(libc.read(this.#fd, address + this.#answers, BUFFER_BYTES));
      if (bytes < 0) {
        if (errno() === EAGAIN) break;
        throw new SystemError("Cannot read the answer of nftables");
      }
      const end = this.#answers + bytes;
      for (let at = this.#answers; at + HEADER_BYTES <= end; ) {
        const length = view.getUint32(at, true);
        if (length < HEADER_BYTES) break;
        const sequence = view.getUint32(at + 8, true);
        if (view.getUint16(at + 4, true) === NLMSG_ERROR && sequence >= first) {
          const result = view.getInt32(at + HEADER_BYTES, true);
          if (result === 0) acknowledged++;
          else if (error === 0) error = -result;
        }
        at += (length + 3) & ~3;
      }
    }
    const what = `nftables does not change the set ${this.set} of table ${this.table}`;
    if (error !== 0) throw new SystemError(what, error);
    if (acknowledged < count) throw new Error(`${what}: the kernel has not answered`);
  }

  #names(): void {
    this.#text(LIST_TABLE, this.table);
    this.#text(LIST_SET, this.set);
  }

  #element(key: number, timeoutMs: number | undefined): void {
    const { view } = this.#arena;
    this.#nested(ELEM_KEY, () =>
      this.#attribute(DATA_VALUE, 4, (at) => {
        view.setUint32(at, key, true);
      }),
    );
    if (timeoutMs === undefined) return;
    this.#attribute(ELEM_TIMEOUT, 8, (at) => {
      view.setBigUint64(at, BigInt(Math.max(1, Math.floor(timeoutMs))), false);
    });
  }

  /** struct nlmsghdr, struct nfgenmsg, attributes. */
  #message(type: number, flags: number, family: number, resource: number, body: () => void): void {
    const { view } = this.#arena;
    const start = this.#at;
    view.setUint16(start + 4, type, true);
    view.setUint16(start + 6, flags, true);
    view.setUint32(start + 8, ++this.#sequence, true);
    view.setUint32(start + 12, 0, true);
    view.setUint8(start + 16, family);
    view.setUint8(start + 17, 0);
    view.setUint16(start + 18, resource, false);
    this.#at = start + 20;
    body();
    view.setUint32(start, this.#at - start, true);
  }

  #attribute(type: number, byteLength: number, write: (at: number) => void): void {
    const { view, bytes } = this.#arena;
    const start = this.#at;
    const padded = (byteLength + 3) & ~3;
    if (start + 4 + padded > BUFFER_BYTES) throw new Error("too many elements for one message to nftables");
    view.setUint16(start, 4 + byteLength, true);
    view.setUint16(start + 2, type, true);
    bytes.fill(0, start + 4, start + 4 + padded);
    write(start + 4);
    this.#at = start + 4 + padded;
  }

  #text(type: number, text: string): void {
    const encoded = new TextEncoder().encode(text);
    this.#attribute(type, encoded.length + 1, (at) => this.#arena.bytes.set(encoded, at));
  }

  #nested(type: number, body: () => void): void {
    const start = this.#at;
    this.#at += 4;
    body();
    this.#arena.view.setUint16(start, this.#at - start, true);
    this.#arena.view.setUint16(start + 2, type | NLA_F_NESTED, true);
  }
}
