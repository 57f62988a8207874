/**
 * Sends frames from the memory in which they lie: an AF_PACKET socket with PACKET_VNET_HDR (packet(7),
 * net/packet/af_packet.c) and sendmmsg, many frames a call. Segmentation and checksum offload travel in the
 * header.
 */
import {
  Arena,
  check,
  closeFd,
  EAGAIN,
  EINTR,
  ENOBUFS,
  errno,
  libc,
  SystemError,
  setAddress,
} from "./libc.ts";
import type { Address } from "./native.ts";

const AF_PACKET = 17;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_SNDBUFFORCE = 32;
const SO_MARK = 36;
const SOL_PACKET = 263;
const PACKET_VNET_HDR = 15;
const MSG_DONTWAIT = 0x40;
const POLLOUT = 4;

const SOCKADDR_LL_BYTES = 20;
const MMSGHDR_BYTES = 64;
const IOVEC_BYTES = 16;
/** Pieces that a frame may be gathered from. */
export const IOVECS_MAX = 64;
/** In struct msghdr: the number of iovecs. */
const MSG_IOVLEN = 24;
/** Frames in a call, and so waiting for it. */
export const MESSAGES_MAX = 256;
const SEND_BUFFER_BYTES = 8 * 1024 * 1024;

/**
 * Room for the start of a frame that is not sent as it lies there: a virtio_net_hdr, Ethernet with two VLAN
 * tags, IP with options or extension headers, TCP with options.
 */
const START_BYTES_MAX = 1024;

/**
 * A full queue is waited for this often for each frame, this long each time, before the frame counts as
 * failed.
 */
const RETRIES_MAX = 20;
const RETRY_WAIT_MS = 1;

export class PacketSocket {
  /** Frames that the kernel refused, and the reason for the last of them. */
  failed = 0;
  lastErrno = 0;

  readonly #fd: number;
  /** For {@link startOffset}. */
  readonly starts: DataView;

  readonly #arena = new Arena(
    MESSAGES_MAX * (MMSGHDR_BYTES + IOVECS_MAX * IOVEC_BYTES + START_BYTES_MAX) + 4096,
  );
  readonly #messages: Address;
  readonly #headers: DataView;
  readonly #startsAddress: Address;
  readonly #pollFd: Address;
  readonly #iovecs: DataView;
  /** How many iovecs each message has at the moment. */
  readonly #pieces = new Uint8Array(MESSAGES_MAX).fill(1);
  /** Frames of the VM in each message. */
  readonly #frames = new Uint8Array(MESSAGES_MAX).fill(1);
  #queued = 0;
  /** Messages in front of this one have gone. */
  #first = 0;
  #sent = 0;

  /**
   * @param ifindex interface to send on, in this thread's network namespace
   * @param options.mark SO_MARK of everything that is sent (the replay mark for diverted input)
   * @throws SystemError without CAP_NET_RAW, or if there is no such interface
   */
  constructor(ifindex: number, { mark = 0 }: { mark?: number } = {}) {
    const arena = this.#arena;
    this.#fd = check(libc.socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0), "Cannot open a packet socket");
    this.#setOption(SOL_PACKET, PACKET_VNET_HDR, 1);
    this.#setOption(SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES);
    if (mark !== 0) this.#setOption(SOL_SOCKET, SO_MARK, mark);

    // Protocol 0: the socket only sends.
    const address = arena.allocate(SOCKADDR_LL_BYTES);
    arena.view.setUint16(address, AF_PACKET, true);
    arena.view.setInt32(address + 4, ifindex, true);
    if (libc.bind(this.#fd, arena.address + address, SOCKADDR_LL_BYTES) < 0) {
      const reason = errno();
      closeFd(this.#fd);
      throw new SystemError(`Cannot bind a packet socket to interface ${ifindex}`, reason);
    }

    const poll = arena.allocate(8);
    arena.view.setInt32(poll, this.#fd, true);
    arena.view.setInt16(poll + 4, POLLOUT, true);
    this.#pollFd = arena.address + poll;

    const messages = arena.allocate(MESSAGES_MAX * MMSGHDR_BYTES);
    const iovecsBytes = MESSAGES_MAX * IOVECS_MAX * IOVEC_BYTES;
    const iovecs = arena.allocate(iovecsBytes);
    const starts = arena.allocate(MESSAGES_MAX * START_BYTES_MAX);
    this.#messages = arena.address + messages;
    this.#headers = new DataView(arena.bytes.buffer, messages, MESSAGES_MAX * MMSGHDR_BYTES);
    this.#iovecs = new DataView(arena.bytes.buffer, iovecs, iovecsBytes);
    this.starts = new DataView(arena.bytes.buffer, starts, MESSAGES_MAX * START_BYTES_MAX);
    this.#startsAddress = arena.address + starts;
    for (let i = 0; i < MESSAGES_MAX; i++) {
      const message = messages + i * MMSGHDR_BYTES;
      const iovec = arena.address + iovecs + i * IOVECS_MAX * IOVEC_BYTES;
      arena.view.setBigUint64(message + 16, BigInt(iovec), true);
      arena.view.setBigUint64(message + MSG_IOVLEN, 1n, true);
    }
  }

  /**
   * Adds a frame to the next send(); sends by itself when MESSAGES_MAX are queued.
   *
   * @param address of a 10-byte virtio_net_hdr with the frame behind it; has to stay as it is until send()
   * @param byteLength of both together
   */
  queue(address: Address, byteLength: number): void {
    const message = this.#queued;
    if (this.#pieces[message] !== 1) this.#setIovecs(message, 1);
    this.#setIovec(message * IOVECS_MAX * IOVEC_BYTES, address, byteLength);
    if (++this.#queued === MESSAGES_MAX) this.#sendQueued();
  }

  /**
   * Where in {@link starts} the next frame's own start may be written, up to START_BYTES_MAX bytes, for
   * {@link queueWithStart}.
   */
  get startOffset(): number {
    return this.#queued * START_BYTES_MAX;
  }

  /**
   * As queue(), for a frame that begins with what was written at {@link startOffset}.
   *
   * @param startBytes of the virtio_net_hdr and what else was written
   * @param address of the rest of the frame
   * @param byteLength of the rest, 0 if there is none
   */
  queueWithStart(startBytes: number, address: Address, byteLength: number): void {
    const message = this.#queued;
    const iovec = message * IOVECS_MAX * IOVEC_BYTES;
    const iovecs = byteLength > 0 ? 2 : 1;
    if (this.#pieces[message] !== iovecs) this.#setIovecs(message, iovecs);
    this.#setIovec(iovec, this.#startsAddress + this.startOffset, startBytes);
    if (byteLength > 0) this.#setIovec(iovec + IOVEC_BYTES, address, byteLength);
    if (++this.#queued === MESSAGES_MAX) this.#sendQueued();
  }

  /** Frames that wait for send(); the next one's message has this number. */
  get queued(): number {
    return this.#queued;
  }

  /** As {@link startOffset}, of a message that is queued already. */
  startOffsetOf(message: number): number {
    return message * START_BYTES_MAX;
  }

  /** Whether a queued message has been given more than one frame's payload by append(). */
  isJoined(message: number): boolean {
    return this.#frames[message] > 1;
  }

  /**
   * Makes a queued message begin with `startBytes` of {@link starts}, to be written before send(), instead
   * of what is there; then come `byteLength` bytes from `address` on.
   */
  splitQueued(message: number, startBytes: number, address: Address, byteLength: number): void {
    const iovec = message * IOVECS_MAX * IOVEC_BYTES;
    this.#setIovec(iovec, this.#startsAddress + this.startOffsetOf(message), startBytes);
    this.#setIovec(iovec + IOVEC_BYTES, address, byteLength);
    this.#setIovecs(message, 2);
  }

  /** Adds another frame's payload to a queued message, which may have IOVECS_MAX pieces. */
  append(message: number, address: Address, byteLength: number): void {
    const pieces = this.#pieces[message];
    this.#setIovec((message * IOVECS_MAX + pieces) * IOVEC_BYTES, address, byteLength);
    this.#setIovecs(message, pieces + 1);
    this.#frames[message]++;
  }

  /** Sends what is queued in front of a message. */
  sendUpTo(message: number): void {
    if (message > this.#first) this.#sendRange(this.#first, message);
    this.#first = message;
  }

  /** What is queued in front of a message has been sent by other means. */
  skipTo(message: number): void {
    this.#first = message;
  }

  /** Sends what is queued; returns how many messages were sent since the last send(). */
  send(): number {
    if (this.#queued > 0) this.#sendQueued();
    const sent = this.#sent;
    this.#sent = 0;
    return sent;
  }

  close(): void {
    closeFd(this.#fd);
    this.#arena.close();
  }

  #sendQueued(): void {
    this.sendUpTo(this.#queued);
    this.#frames.fill(1, 0, this.#queued);
    this.#queued = 0;
    this.#first = 0;
  }

  #sendRange(from: number, to: number): void {
    let first = from;
    let retries = 0;
    while (first < to) {
      const messages = this.#messages + first * MMSGHDR_BYTES;
      const sent = libc.sendmmsg(this.#fd, messages, to - first, MSG_DONTWAIT);
      if (sent > 0) {
        first += sent;
        this.#sent += sent;
        retries = 0;
        continue;
      }
      const reason = errno();
      if (reason === EINTR) continue;
      if ((reason === EAGAIN || reason === ENOBUFS) && retries < RETRIES_MAX) {
        retries++;
        libc.poll(this.#pollFd, reason === EAGAIN ? 1 : 0, RETRY_WAIT_MS);
        continue;
      }
      this.failed += this.#frames[first];
      this.lastErrno = reason;
      first++;
      retries = 0;
    }
  }

  #setIovec(at: number, address: Address, byteLength: number): void {
    setAddress(this.#iovecs, at, address);
    this.#iovecs.setUint32(at + 8, byteLength, true);
  }

  #setIovecs(message: number, count: number): void {
    this.#headers.setUint32(message * MMSGHDR_BYTES + MSG_IOVLEN, count, true);
    this.#pieces[message] = count;
  }

  #setOption(level: number, option: number, value: number): void {
    this.#arena.reset();
    const offset = this.#arena.allocate(4);
    this.#arena.view.setUint32(offset, value, true);
    const result = libc.setsockopt(this.#fd, level, option, this.#arena.address + offset, 4);
    this.#arena.reset();
    if (result < 0) {
      const reason = errno();
      closeFd(this.#fd);
      throw new SystemError(`Cannot set option ${option} of a packet socket`, reason);
    }
  }
}
