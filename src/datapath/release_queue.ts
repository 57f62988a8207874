/**
 * What the comparer lets go, on its way to the packet socket. The kernel's way from there to the bridge costs
 * the same for one segment as for a large frame with many (docs/performance.md), so neighbours of a TCP
 * stream leave as one frame that the last device of their way cuts up again (generic segmentation offload).
 *
 * The rule: only where that gives back, byte for byte, the segments that the VM sent. What the kernel makes
 * of a large frame (net/ipv4/tcp_offload.c, tcp_gso_segment; net/ipv4/af_inet.c, inet_gso_segment) is:
 * headers all alike, but for the sequence number, which goes up by the segment's size, the IPv4
 * identification, which goes up by one, lengths and checksums; only the last one may be shorter; only the
 * last one has PSH and FIN. So a segment joins the one before if it is just that. Frames without a transport
 * checksum still to be filled in never do: whether theirs is right could only be told by adding up their
 * payload.
 *
 * Nothing of a payload is copied: a joined frame has a header of its own, the payloads are gathered from the
 * ring.
 *
 * Small frames in a row that have not joined go in a run of live frames instead of through the socket, if
 * there are enough. Both ways hand a frame to the bridge before they take the next one, so the order stays.
 */
import type { FrameChange } from "../compare/frame_change.ts";
import { RECORD, RECORD_HEADER_BYTES, RECORD_SEND_OFFSET, VNET, VNET_BYTES } from "../ffi/layout.ts";
import { LIVE_SEND_BYTES_MAX, type LiveFrames } from "../ffi/live_frames.ts";
import { IOVECS_MAX, MESSAGES_MAX, type PacketSocket } from "../ffi/packet_socket.ts";
import type { Ring } from "../ffi/ring.ts";
import { fold } from "../packet/checksum.ts";
import {
  ETHERNET_HEADER_BYTES,
  ETHERTYPE_IPV4,
  ETHERTYPE_IPV6,
  PROTOCOL_TCP,
  TCP_ACK,
} from "../packet/protocol_numbers.ts";
import { ChangedFrames } from "./changed_frame.ts";

/** Frames that wait for a flush at most. */
const SLOTS_MAX = 2048;
/** Places for streams that a segment may join, by hash. A power of two. */
const STREAMS = 1024;
/** Fewer are cheaper through the socket: a run has its price (docs/performance.md). */
const LIVE_FRAMES_MIN = 32;
/** One iovec is the header's. */
const JOINED_MAX = IOVECS_MAX - 1;
/** Of an IPv4 packet (RFC 791), and of what follows an IPv6 header (RFC 8200). */
const LENGTH_MAX = 65_535;

const IPV4_BYTES = 20;
const IPV6_BYTES = 40;
const IPV4_PLAIN = 0x45;
const DONT_FRAGMENT = 0x4000;
const TCP_BYTES_MIN = 20;
const TCP_CHECKSUM = 16;
/**
 * Smaller ones are not worth a large frame: devices have to be able to cut that up. Linux itself goes no
 * lower.
 */
const SEGMENT_BYTES_MIN = 48; // net/ipv4/sysctl_net_ipv4.c, tcp_min_snd_mss
const FLAGS_OF_LAST = 0x09; // PSH, FIN
/** include/uapi/linux/virtio_net.h */
const NEEDS_CHECKSUM = 1;
const GSO_NONE = 0;
const GSO_TCPV4 = 1;
const GSO_TCPV6 = 4;

export class ReleaseQueue {
  /** Frames that left as part of one before them: frames on the wire, but none of the socket's. */
  joinedFrames = 0;

  readonly #ring: Ring;
  readonly #view: DataView;
  readonly #socket: PacketSocket;
  readonly #live: LiveFrames;
  readonly #changed: ChangedFrames;
  /** To be given back to the ring after the flush. */
  readonly #slots = new Int32Array(SLOTS_MAX);
  #slotCount = 0;
  #hasParts = false;

  /** By hash: generation of the queue * MESSAGES_MAX + message that a segment may join. */
  readonly #streams = new Float64Array(STREAMS).fill(-1);
  #generation = 0;
  // By message. What the next segment has to be, and what has been joined already.
  readonly #firstFrame = new Float64Array(MESSAGES_MAX);
  readonly #lastFlags = new Uint8Array(MESSAGES_MAX);
  readonly #segments = new Int32Array(MESSAGES_MAX);
  readonly #segmentBytes = new Int32Array(MESSAGES_MAX);
  readonly #payloadBytes = new Int32Array(MESSAGES_MAX);
  /** Of a frame that may go in a run: where its virtio_net_hdr is, and its length with that; else 0. */
  readonly #liveAddress = new Float64Array(MESSAGES_MAX);
  readonly #liveBytes = new Int32Array(MESSAGES_MAX);

  // Of the frame that isSegment() has looked at.
  #transport = 0;
  #payload = 0;
  #payloadLength = 0;

  constructor(ring: Ring, socket: PacketSocket, live: LiveFrames) {
    this.#ring = ring;
    this.#live = live;
    this.#view = ring.view;
    this.#socket = socket;
    this.#changed = new ChangedFrames(ring);
  }

  /** Frames that could not be sent, either way. */
  get failedFrames(): number {
    return this.#socket.failed + this.#live.failed;
  }

  /** Sends a frame as it lies in the ring; its slot is done after the flush. */
  release(slot: number): void {
    const offset = this.#ring.offset(slot);
    const frameBytes = this.#view.getUint32(offset + RECORD.frame_bytes, true);
    const frame = offset + RECORD_HEADER_BYTES;
    if (this.#isSegment(offset, frame, frameBytes)) {
      const stream = this.#stream();
      const known = this.#streams[stream] - this.#generation * MESSAGES_MAX;
      if (known >= 0 && this.#joins(known, frame)) {
        this.#join(known, stream, frame);
        this.#take(slot);
        return;
      }
      this.#open(this.#socket.queued, stream, frame);
    } else {
      // Nothing may overtake it within its connection.
      if (this.#transport > 0) this.#streams[this.#stream()] = -1;
      else if (this.#transport < 0) this.#generation++;
    }
    this.#queue(offset, VNET_BYTES + frameBytes);
    this.#take(slot);
  }

  /** Sends what `change` says of a frame; its slot is done after the flush. */
  releaseChanged(slot: number, change: FrameChange): void {
    this.part(slot, change);
    this.#take(slot);
  }

  /** Sends what `change` says of a frame that stays. */
  part(slot: number, change: FrameChange): void {
    if (change.silent) return;
    this.#generation++;
    const socket = this.#socket;
    const offset = this.#ring.offset(slot);
    const startBytes = this.#changed.writeStart(offset, change, socket.starts, socket.startOffset);
    this.#liveBytes[socket.queued] = 0;
    socket.queueWithStart(startBytes, this.#ring.address + change.payload, change.payloadBytes);
    this.#hasParts = true;
    if (socket.queued === MESSAGES_MAX - 1) this.flush();
  }

  flush(): void {
    if (this.#slotCount === 0 && !this.#hasParts) return;
    const queued = this.#socket.queued;
    for (let message = 0; message < queued; message++) {
      if (this.#socket.isJoined(message)) this.#writeHeader(message);
    }
    if (queued >= LIVE_FRAMES_MIN) this.#sendRuns(queued);
    this.#socket.flush();
    for (let i = 0; i < this.#slotCount; i++) this.#ring.done(this.#slots[i]);
    this.#slotCount = 0;
    this.#hasParts = false;
    this.#generation++;
  }

  /** A frame as it lies in the ring. */
  #queue(record: number, byteLength: number): void {
    const message = this.#socket.queued;
    const address = this.#ring.address + record + RECORD_SEND_OFFSET;
    const fits =
      byteLength <= LIVE_SEND_BYTES_MAX &&
      this.#view.getUint8(record + RECORD.vnet + VNET.gso_type) === GSO_NONE;
    this.#liveAddress[message] = address;
    this.#liveBytes[message] = fits ? byteLength : 0;
    this.#socket.queue(address, byteLength);
  }

  /** Sends the rows of small frames as runs, and what is in front of them through the socket. */
  #sendRuns(queued: number): void {
    const live = this.#live;
    for (let first = 0; first < queued; ) {
      let end = first;
      while (end < queued && this.#liveBytes[end] > 0 && !this.#socket.isJoined(end)) end++;
      if (end - first >= LIVE_FRAMES_MIN) {
        this.#socket.sendUpTo(first);
        for (let i = first; i < end; i++) live.queue(this.#liveAddress[i], this.#liveBytes[i]);
        this.#socket.skipTo(first + live.flush());
      }
      first = end + 1;
    }
  }

  #take(slot: number): void {
    this.#slots[this.#slotCount++] = slot;
    if (this.#slotCount === SLOTS_MAX || this.#socket.queued === MESSAGES_MAX - 1) this.flush();
  }

  /**
   * Whether the kernel's segmentation could have made it, for some frame: TCP with bytes, and nothing
   * unusual. Leaves in #transport where TCP begins; 0 if there is none in the frame, -1 if that has not been
   * looked for.
   */
  #isSegment(record: number, frame: number, frameBytes: number): boolean {
    const view = this.#view;
    const network = frame + ETHERNET_HEADER_BYTES;
    this.#transport = -1;
    if (frameBytes < ETHERNET_HEADER_BYTES + IPV4_BYTES) return false;
    const type = view.getUint16(network - 2);
    let transport: number;
    if (type === ETHERTYPE_IPV4) {
      if (view.getUint8(network + 9) !== PROTOCOL_TCP) {
        this.#transport = 0;
        return false;
      }
      if (view.getUint8(network) !== IPV4_PLAIN) return false;
      if (frameBytes < ETHERNET_HEADER_BYTES + IPV4_BYTES + TCP_BYTES_MIN) return false;
      if ((view.getUint16(network + 6) & ~DONT_FRAGMENT) !== 0) return false;
      transport = network + IPV4_BYTES;
      this.#transport = transport;
      if (view.getUint16(network + 2) !== frameBytes - ETHERNET_HEADER_BYTES) return false;
      let sum = 0;
      for (let at = 0; at < IPV4_BYTES; at += 4) {
        const word = view.getInt32(network + at);
        sum += (word >>> 16) + (word & 0xffff);
      }
      // The kernel writes the right one.
      if (fold(sum) !== 0xffff) return false;
    } else if (type === ETHERTYPE_IPV6) {
      if (frameBytes < ETHERNET_HEADER_BYTES + IPV6_BYTES + TCP_BYTES_MIN) return false;
      if (view.getUint8(network) >> 4 !== 6 || view.getUint8(network + 6) !== PROTOCOL_TCP) return false;
      transport = network + IPV6_BYTES;
      this.#transport = transport;
      if (view.getUint16(network + 4) !== frameBytes - ETHERNET_HEADER_BYTES - IPV6_BYTES) return false;
    } else return false;
    const vnet = record + RECORD.vnet;
    if (view.getUint8(vnet + VNET.flags) !== NEEDS_CHECKSUM) return false;
    if (view.getUint8(vnet + VNET.gso_type) !== GSO_NONE) return false;
    if (view.getUint16(vnet + VNET.csum_start, true) !== transport - frame) return false;
    if (view.getUint16(vnet + VNET.csum_offset, true) !== TCP_CHECKSUM) return false;
    const words = view.getUint8(transport + 12);
    const tcpBytes = (words >> 4) * 4;
    // The low half has bits that only ECN uses, like the flags left out below: rare where there is much to
    // send.
    if ((words & 0x0f) !== 0 || tcpBytes < TCP_BYTES_MIN) return false;
    if ((view.getUint8(transport + 13) & ~FLAGS_OF_LAST) !== TCP_ACK) return false;
    const payloadLength = frame + frameBytes - transport - tcpBytes;
    if (payloadLength < SEGMENT_BYTES_MIN) return false;
    this.#payload = transport + tcpBytes;
    this.#payloadLength = payloadLength;
    return true;
  }

  /** Addresses end where TCP begins, with both protocols. */
  #stream(): number {
    const view = this.#view;
    const transport = this.#transport;
    let hash = view.getInt32(transport) ^ Math.imul(view.getInt32(transport - 4), 0x9e3779b1);
    hash ^= hash >>> 16;
    return (hash ^ (hash >>> 9)) & (STREAMS - 1);
  }

  #open(message: number, stream: number, frame: number): void {
    const flags = this.#view.getUint8(this.#transport + 13);
    this.#firstFrame[message] = frame;
    this.#lastFlags[message] = flags;
    this.#segments[message] = 1;
    this.#segmentBytes[message] = this.#payloadLength;
    this.#payloadBytes[message] = this.#payloadLength;
    this.#streams[stream] = (flags & FLAGS_OF_LAST) === 0 ? this.#generation * MESSAGES_MAX + message : -1;
  }

  /**
   * Whether the frame that isSegment() has looked at is what segmentation would make next of a message's
   * frame.
   */
  #joins(message: number, frame: number): boolean {
    if (message >= this.#socket.queued) return false;
    const view = this.#view;
    const first = this.#firstFrame[message];
    const transport = this.#transport;
    const headers = this.#payload - frame;
    const firstTransport = first + transport - frame;
    const segments = this.#segments[message];
    const segmentBytes = this.#segmentBytes[message];
    const payloadBytes = this.#payloadBytes[message];
    if (this.#payloadLength > segmentBytes || segments === JOINED_MAX) return false;
    if (headers - ETHERNET_HEADER_BYTES + payloadBytes + this.#payloadLength > LENGTH_MAX) return false;
    // Sequence number, ports, acknowledgement, length of the header (flags are as they have to be), window,
    // urgent.
    if (view.getInt32(transport + 4) !== ((view.getInt32(firstTransport + 4) + payloadBytes) | 0))
      return false;
    if (view.getInt32(transport) !== view.getInt32(firstTransport)) return false;
    if (view.getInt32(transport + 8) !== view.getInt32(firstTransport + 8)) return false;
    if (view.getUint8(transport + 12) !== view.getUint8(firstTransport + 12)) return false;
    if (view.getUint16(transport + 14) !== view.getUint16(firstTransport + 14)) return false;
    if (view.getUint16(transport + 18) !== view.getUint16(firstTransport + 18)) return false;
    for (let at = TCP_BYTES_MIN; transport + at < this.#payload; at += 4) {
      if (view.getInt32(transport + at) !== view.getInt32(firstTransport + at)) return false;
    }
    // The sum of the pseudo header knows the length.
    const less = segmentBytes - this.#payloadLength;
    const sum = view.getUint16(transport + TCP_CHECKSUM) - view.getUint16(firstTransport + TCP_CHECKSUM);
    if ((sum + less) % 0xffff !== 0) return false;
    // Ethernet.
    if (view.getInt32(frame) !== view.getInt32(first)) return false;
    if (view.getInt32(frame + 4) !== view.getInt32(first + 4)) return false;
    if (view.getInt32(frame + 8) !== view.getInt32(first + 8)) return false;
    const network = frame + ETHERNET_HEADER_BYTES;
    const firstNetwork = first + ETHERNET_HEADER_BYTES;
    if (view.getUint16(network - 2) !== view.getUint16(firstNetwork - 2)) return false;
    if (transport - network === IPV4_BYTES) {
      // Class of service, identification, fragmentation, lifetime, addresses.
      if (view.getUint16(network) !== view.getUint16(firstNetwork)) return false;
      if (view.getUint16(network + 4) !== ((view.getUint16(firstNetwork + 4) + segments) & 0xffff))
        return false;
      if (view.getInt32(network + 12) !== view.getInt32(firstNetwork + 12)) return false;
      if (view.getInt32(network + 16) !== view.getInt32(firstNetwork + 16)) return false;
      return (
        view.getUint16(network + 6) === view.getUint16(firstNetwork + 6) &&
        view.getUint16(network + 8) === view.getUint16(firstNetwork + 8)
      );
    }
    if (view.getInt32(network) !== view.getInt32(firstNetwork)) return false;
    if (view.getUint16(network + 6) !== view.getUint16(firstNetwork + 6)) return false;
    for (let at = 8; at < IPV6_BYTES; at += 4) {
      if (view.getInt32(network + at) !== view.getInt32(firstNetwork + at)) return false;
    }
    return true;
  }

  #join(message: number, stream: number, frame: number): void {
    const socket = this.#socket;
    const address = this.#ring.address;
    if (this.#segments[message] === 1) {
      const payload = this.#firstFrame[message] + this.#payload - frame;
      const startBytes = VNET_BYTES + this.#payload - frame;
      socket.splitQueued(message, startBytes, address + payload, this.#segmentBytes[message]);
    }
    socket.append(message, address + this.#payload, this.#payloadLength);
    const flags = this.#view.getUint8(this.#transport + 13);
    this.#lastFlags[message] = flags;
    this.#segments[message]++;
    this.#payloadBytes[message] += this.#payloadLength;
    this.joinedFrames++;
    const isLast = (flags & FLAGS_OF_LAST) !== 0 || this.#payloadLength < this.#segmentBytes[message];
    if (isLast) this.#streams[stream] = -1;
  }

  /** The header of a joined frame: that of the first segment, as the header of all. */
  #writeHeader(message: number): void {
    const { starts } = this.#socket;
    const view = this.#view;
    const first = this.#firstFrame[message];
    const from = first - VNET_BYTES;
    const at = this.#socket.startOffsetOf(message);
    const isIpv4 = view.getUint16(first + ETHERNET_HEADER_BYTES - 2) === ETHERTYPE_IPV4;
    const networkBytes = isIpv4 ? IPV4_BYTES : IPV6_BYTES;
    const tcpBytes = (view.getUint8(first + ETHERNET_HEADER_BYTES + networkBytes + 12) >> 4) * 4;
    const headerBytes = ETHERNET_HEADER_BYTES + networkBytes + tcpBytes;
    for (let i = 0; i < VNET_BYTES + headerBytes; i += 2) {
      starts.setUint16(at + i, view.getUint16(from + i));
    }
    const payloadBytes = this.#payloadBytes[message];
    const more = payloadBytes - this.#segmentBytes[message];
    const network = at + VNET_BYTES + ETHERNET_HEADER_BYTES;
    const transport = network + networkBytes;
    starts.setUint8(at + VNET.gso_type, isIpv4 ? GSO_TCPV4 : GSO_TCPV6);
    starts.setUint16(at + VNET.hdr_len, headerBytes, true);
    starts.setUint16(at + VNET.gso_size, this.#segmentBytes[message], true);
    if (isIpv4) {
      const before = starts.getUint16(network + 2);
      const length = before + more;
      starts.setUint16(network + 2, length);
      // RFC 1624, eqn. 3.
      const sum = (~starts.getUint16(network + 10) & 0xffff) + (~before & 0xffff) + length;
      starts.setUint16(network + 10, ~fold(sum) & 0xffff);
    } else {
      starts.setUint16(network + 4, starts.getUint16(network + 4) + more);
    }
    starts.setUint8(transport + 13, this.#lastFlags[message]);
    starts.setUint16(transport + TCP_CHECKSUM, fold(starts.getUint16(transport + TCP_CHECKSUM) + more));
  }
}
