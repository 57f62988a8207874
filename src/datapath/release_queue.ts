/**
 * Permitted frames on their way to the packet socket. The kernel's path from there to the bridge costs the
 * same for one segment as for a large frame with many (docs/performance.md). Neighbours of a TCP stream
 * therefore leave as one frame, which the last device of their path segments (generic segmentation offload).
 *
 * The rule: frames join only where segmentation gives back, byte for byte, the segments that the VM sent. The
 * kernel's segments (net/ipv4/tcp_offload.c, tcp_gso_segment; net/ipv4/af_inet.c, inet_gso_segment) have the
 * same headers, with these exceptions. The sequence number rises by the segment's size and the IPv4
 * identification by one. Lengths and checksums follow. The last segment may be shorter, and only it has PSH
 * and FIN. A segment joins the one before it if it is exactly the next of these. A frame with a complete
 * transport checksum never joins: only a sum over its payload could show whether the checksum is right.
 *
 * No payload is copied: a joined frame has its own header, and its payloads are gathered from the ring.
 *
 * A row of enough small frames that have not joined leaves in a run of live frames instead of through the
 * socket. Both ways pass a frame to the bridge before they take the next one, so the order is kept.
 */
import type { FrameChange } from "../compare/frame_change.ts";
import {
  RECORD,
  RECORD_HEADER_BYTES,
  RECORD_SEND_OFFSET,
  VNET,
  VNET_BYTES,
  VNET_GSO,
  VNET_NEEDS_CHECKSUM,
} from "../ffi/layout.ts";
import { LIVE_SEND_BYTES_MAX, type LiveFrames } from "../ffi/live_frames.ts";
import { IOVECS_MAX, MESSAGES_MAX, type PacketSocket } from "../ffi/packet_socket.ts";
import type { Ring } from "../ffi/ring.ts";
import { fold } from "../packet/checksum.ts";
import {
  IPV4_CHECKSUM_AT,
  IPV4_DESTINATION_AT,
  IPV4_FRAGMENT_AT,
  IPV4_HEADER_BYTES,
  IPV4_IDENTIFICATION_AT,
  IPV4_PROTOCOL_AT,
  IPV4_SOURCE_AT,
  IPV4_TIME_TO_LIVE_AT,
  IPV4_TOTAL_BYTES_AT,
  IPV6_HEADER_BYTES,
  IPV6_NEXT_HEADER_AT,
  IPV6_PAYLOAD_BYTES_AT,
  IPV6_SOURCE_AT,
  TCP_ACKNOWLEDGEMENT_AT,
  TCP_CHECKSUM_AT,
  TCP_DATA_OFFSET_AT,
  TCP_FLAGS_AT,
  TCP_HEADER_BYTES,
  TCP_PORTS_AT,
  TCP_SEQUENCE_AT,
  TCP_URGENT_AT,
  TCP_WINDOW_AT,
} from "../packet/headers.ts";
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

/** Version 4, a header without options. */
const IPV4_PLAIN = 0x45;
const DONT_FRAGMENT = 0x4000;
/** Smaller segments do not join. Linux itself sends none: net/ipv4/sysctl_net_ipv4.c, tcp_min_snd_mss. */
const SEGMENT_BYTES_MIN = 48;
const FLAGS_OF_LAST = 0x09; // PSH, FIN

/** A frame, as far as the kernel's segmentation asks; reused for each frame. Offsets in the ring. */
class Segment {
  /** Of the Ethernet header. */
  frame = 0;
  /** Of the TCP header; 0 if there is none, -1 if that was not looked for. */
  transport = 0;
  payload = 0;
  payloadBytes = 0;
}

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
  // By message: the next segment's required fields, and the sums of the joined ones.
  readonly #firstFrame = new Float64Array(MESSAGES_MAX);
  readonly #lastFlags = new Uint8Array(MESSAGES_MAX);
  readonly #segments = new Int32Array(MESSAGES_MAX);
  readonly #segmentBytes = new Int32Array(MESSAGES_MAX);
  readonly #payloadBytes = new Int32Array(MESSAGES_MAX);
  /** Of a frame that may go in a run: where its virtio_net_hdr is, and its length with that; else 0. */
  readonly #liveAddress = new Float64Array(MESSAGES_MAX);
  readonly #liveBytes = new Int32Array(MESSAGES_MAX);

  readonly #segment = new Segment();

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

  /** Takes a frame, to be sent as it lies in the ring; its slot is done after the flush. */
  enqueue(slot: number): void {
    const segment = this.#segment;
    const offset = this.#ring.offset(slot);
    const frameBytes = this.#view.getUint32(offset + RECORD.frame_bytes, true);
    if (this.#isSegment(offset, frameBytes, segment)) {
      const stream = this.#stream(segment);
      const known = this.#streams[stream] - this.#generation * MESSAGES_MAX;
      if (known >= 0 && this.#joins(known, segment)) {
        this.#join(known, stream, segment);
        this.#take(slot);
        return;
      }
      this.#open(this.#socket.queued, stream, segment);
    } else {
      // Nothing may overtake it within its connection.
      if (segment.transport > 0) this.#streams[this.#stream(segment)] = -1;
      else if (segment.transport < 0) this.#generation++;
    }
    this.#queue(offset, VNET_BYTES + frameBytes);
    this.#take(slot);
  }

  /** Takes a frame, to be sent as `change` says; its slot is done after the flush. */
  enqueueChanged(slot: number, change: FrameChange): void {
    this.enqueuePart(slot, change);
    this.#take(slot);
  }

  /** Takes the part of a frame that `change` describes; the frame stays. */
  enqueuePart(slot: number, change: FrameChange): void {
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
    this.#socket.send();
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
      this.#view.getUint8(record + RECORD.vnet + VNET.gso_type) === VNET_GSO.NONE;
    this.#liveAddress[message] = address;
    this.#liveBytes[message] = fits ? byteLength : 0;
    this.#socket.queue(address, byteLength);
  }

  /** Sends rows of small frames as runs, and the frames before them through the socket. */
  #sendRuns(queued: number): void {
    const live = this.#live;
    for (let first = 0; first < queued; ) {
      let end = first;
      while (end < queued && this.#liveBytes[end] > 0 && !this.#socket.isJoined(end)) end++;
      if (end - first >= LIVE_FRAMES_MIN) {
        this.#socket.sendUpTo(first);
        for (let i = first; i < end; i++) live.queue(this.#liveAddress[i], this.#liveBytes[i]);
        this.#socket.skipTo(first + live.send());
      }
      first = end + 1;
    }
  }

  #take(slot: number): void {
    this.#slots[this.#slotCount++] = slot;
    if (this.#slotCount === SLOTS_MAX || this.#socket.queued === MESSAGES_MAX - 1) this.flush();
  }

  /**
   * Whether the kernel's segmentation could have made the frame of a record: TCP with bytes, and nothing
   * unusual. Fills in `segment`; without a segment only its `transport`.
   */
  #isSegment(record: number, frameBytes: number, segment: Segment): boolean {
    const view = this.#view;
    const frame = record + RECORD_HEADER_BYTES;
    segment.frame = frame;
    const network = frame + ETHERNET_HEADER_BYTES;
    segment.transport = -1;
    if (frameBytes < ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES) return false;
    const type = view.getUint16(network - 2);
    let transport: number;
    if (type === ETHERTYPE_IPV4) {
      if (view.getUint8(network + IPV4_PROTOCOL_AT) !== PROTOCOL_TCP) {
        segment.transport = 0;
        return false;
      }
      if (view.getUint8(network) !== IPV4_PLAIN) return false;
      if (frameBytes < ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES + TCP_HEADER_BYTES) return false;
      if ((view.getUint16(network + IPV4_FRAGMENT_AT) & ~DONT_FRAGMENT) !== 0) return false;
      transport = network + IPV4_HEADER_BYTES;
      segment.transport = transport;
      if (view.getUint16(network + IPV4_TOTAL_BYTES_AT) !== frameBytes - ETHERNET_HEADER_BYTES) return false;
      let sum = 0;
      for (let at = 0; at < IPV4_HEADER_BYTES; at += 4) {
        const word = view.getInt32(network + at);
        sum += (word >>> 16) + (word & 0xffff);
      }
      // The kernel writes the right one.
      if (fold(sum) !== 0xffff) return false;
    } else if (type === ETHERTYPE_IPV6) {
      if (frameBytes < ETHERNET_HEADER_BYTES + IPV6_HEADER_BYTES + TCP_HEADER_BYTES) return false;
      if (view.getUint8(network) >> 4 !== 6 || view.getUint8(network + IPV6_NEXT_HEADER_AT) !== PROTOCOL_TCP)
        return false;
      transport = network + IPV6_HEADER_BYTES;
      segment.transport = transport;
      if (
        view.getUint16(network + IPV6_PAYLOAD_BYTES_AT) !==
        frameBytes - ETHERNET_HEADER_BYTES - IPV6_HEADER_BYTES
      )
        return false;
    } else return false;
    const vnet = record + RECORD.vnet;
    if (view.getUint8(vnet + VNET.flags) !== VNET_NEEDS_CHECKSUM) return false;
    if (view.getUint8(vnet + VNET.gso_type) !== VNET_GSO.NONE) return false;
    if (view.getUint16(vnet + VNET.csum_start, true) !== transport - frame) return false;
    if (view.getUint16(vnet + VNET.csum_offset, true) !== TCP_CHECKSUM_AT) return false;
    const words = view.getUint8(transport + TCP_DATA_OFFSET_AT);
    const tcpBytes = (words >> 4) * 4;
    // The low half has bits that only ECN uses, like the flags left out below: rare where there is much to
    // send.
    if ((words & 0x0f) !== 0 || tcpBytes < TCP_HEADER_BYTES) return false;
    if ((view.getUint8(transport + TCP_FLAGS_AT) & ~FLAGS_OF_LAST) !== TCP_ACK) return false;
    const payloadBytes = frame + frameBytes - transport - tcpBytes;
    if (payloadBytes < SEGMENT_BYTES_MIN) return false;
    segment.payload = transport + tcpBytes;
    segment.payloadBytes = payloadBytes;
    return true;
  }

  /** Addresses end where TCP begins, with both protocols. */
  #stream({ transport }: Segment): number {
    const view = this.#view;
    let hash = view.getInt32(transport) ^ Math.imul(view.getInt32(transport - 4), 0x9e3779b1);
    hash ^= hash >>> 16;
    return (hash ^ (hash >>> 9)) & (STREAMS - 1);
  }

  #open(message: number, stream: number, segment: Segment): void {
    const flags = this.#view.getUint8(segment.transport + TCP_FLAGS_AT);
    this.#firstFrame[message] = segment.frame;
    this.#lastFlags[message] = flags;
    this.#segments[message] = 1;
    this.#segmentBytes[message] = segment.payloadBytes;
    this.#payloadBytes[message] = segment.payloadBytes;
    this.#streams[stream] = (flags & FLAGS_OF_LAST) === 0 ? this.#generation * MESSAGES_MAX + message : -1;
  }

  /** Whether segmentation would make `segment` next of a message's frame. */
  #joins(message: number, segment: Segment): boolean {
    if (message >= this.#socket.queued) return false;
    const view = this.#view;
    const first = this.#firstFrame[message];
    const { frame, transport, payload } = segment;
    const headers = payload - frame;
    const firstTransport = first + transport - frame;
    const segments = this.#segments[message];
    const segmentBytes = this.#segmentBytes[message];
    const payloadBytes = this.#payloadBytes[message];
    if (segment.payloadBytes > segmentBytes || segments === JOINED_MAX) return false;
    if (headers - ETHERNET_HEADER_BYTES + payloadBytes + segment.payloadBytes > LENGTH_MAX) return false;
    // Sequence number, ports, acknowledgement, length of the header (flags are as they have to be), window,
    // urgent.
    if (
      view.getInt32(transport + TCP_SEQUENCE_AT) !==
      ((view.getInt32(firstTransport + TCP_SEQUENCE_AT) + payloadBytes) | 0)
    )
      return false;
    if (view.getInt32(transport + TCP_PORTS_AT) !== view.getInt32(firstTransport + TCP_PORTS_AT))
      return false;
    if (
      view.getInt32(transport + TCP_ACKNOWLEDGEMENT_AT) !==
      view.getInt32(firstTransport + TCP_ACKNOWLEDGEMENT_AT)
    )
      return false;
    if (view.getUint8(transport + TCP_DATA_OFFSET_AT) !== view.getUint8(firstTransport + TCP_DATA_OFFSET_AT))
      return false;
    if (view.getUint16(transport + TCP_WINDOW_AT) !== view.getUint16(firstTransport + TCP_WINDOW_AT))
      return false;
    if (view.getUint16(transport + TCP_URGENT_AT) !== view.getUint16(firstTransport + TCP_URGENT_AT))
      return false;
    for (let at = TCP_HEADER_BYTES; transport + at < payload; at += 4) {
      if (view.getInt32(transport + at) !== view.getInt32(firstTransport + at)) return false;
    }
    // The sum of the pseudo header knows the length.
    const less = segmentBytes - segment.payloadBytes;
    const sum =
      view.getUint16(transport + TCP_CHECKSUM_AT) - view.getUint16(firstTransport + TCP_CHECKSUM_AT);
    if ((sum + less) % 0xffff !== 0) return false;
    // Ethernet.
    if (view.getInt32(frame) !== view.getInt32(first)) return false;
    if (view.getInt32(frame + 4) !== view.getInt32(first + 4)) return false;
    if (view.getInt32(frame + 8) !== view.getInt32(first + 8)) return false;
    const network = frame + ETHERNET_HEADER_BYTES;
    const firstNetwork = first + ETHERNET_HEADER_BYTES;
    if (view.getUint16(network - 2) !== view.getUint16(firstNetwork - 2)) return false;
    if (transport - network === IPV4_HEADER_BYTES) {
      // Class of service, identification, fragmentation, lifetime, addresses.
      if (view.getUint16(network) !== view.getUint16(firstNetwork)) return false;
      if (
        view.getUint16(network + IPV4_IDENTIFICATION_AT) !==
        ((view.getUint16(firstNetwork + IPV4_IDENTIFICATION_AT) + segments) & 0xffff)
      )
        return false;
      if (view.getInt32(network + IPV4_SOURCE_AT) !== view.getInt32(firstNetwork + IPV4_SOURCE_AT))
        return false;
      if (view.getInt32(network + IPV4_DESTINATION_AT) !== view.getInt32(firstNetwork + IPV4_DESTINATION_AT))
        return false;
      return (
        view.getUint16(network + IPV4_FRAGMENT_AT) === view.getUint16(firstNetwork + IPV4_FRAGMENT_AT) &&
        view.getUint16(network + IPV4_TIME_TO_LIVE_AT) === view.getUint16(firstNetwork + IPV4_TIME_TO_LIVE_AT)
      );
    }
    if (view.getInt32(network) !== view.getInt32(firstNetwork)) return false;
    if (view.getUint16(network + IPV6_NEXT_HEADER_AT) !== view.getUint16(firstNetwork + IPV6_NEXT_HEADER_AT))
      return false;
    for (let at: number = IPV6_SOURCE_AT; at < IPV6_HEADER_BYTES; at += 4) {
      if (view.getInt32(network + at) !== view.getInt32(firstNetwork + at)) return false;
    }
    return true;
  }

  #join(message: number, stream: number, segment: Segment): void {
    const socket = this.#socket;
    const address = this.#ring.address;
    if (this.#segments[message] === 1) {
      const payload = this.#firstFrame[message] + segment.payload - segment.frame;
      const startBytes = VNET_BYTES + segment.payload - segment.frame;
      socket.splitQueued(message, startBytes, address + payload, this.#segmentBytes[message]);
    }
    socket.append(message, address + segment.payload, segment.payloadBytes);
    const flags = this.#view.getUint8(segment.transport + TCP_FLAGS_AT);
    this.#lastFlags[message] = flags;
    this.#segments[message]++;
    this.#payloadBytes[message] += segment.payloadBytes;
    this.joinedFrames++;
    const isLast = (flags & FLAGS_OF_LAST) !== 0 || segment.payloadBytes < this.#segmentBytes[message];
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
    const networkBytes = isIpv4 ? IPV4_HEADER_BYTES : IPV6_HEADER_BYTES;
    const tcpBytes =
      (view.getUint8(first + ETHERNET_HEADER_BYTES + networkBytes + TCP_DATA_OFFSET_AT) >> 4) * 4;
    const headerBytes = ETHERNET_HEADER_BYTES + networkBytes + tcpBytes;
    for (let i = 0; i < VNET_BYTES + headerBytes; i += 2) {
      starts.setUint16(at + i, view.getUint16(from + i));
    }
    const payloadBytes = this.#payloadBytes[message];
    const more = payloadBytes - this.#segmentBytes[message];
    const network = at + VNET_BYTES + ETHERNET_HEADER_BYTES;
    const transport = network + networkBytes;
    starts.setUint8(at + VNET.gso_type, isIpv4 ? VNET_GSO.TCPV4 : VNET_GSO.TCPV6);
    starts.setUint16(at + VNET.hdr_len, headerBytes, true);
    starts.setUint16(at + VNET.gso_size, this.#segmentBytes[message], true);
    if (isIpv4) {
      const before = starts.getUint16(network + IPV4_TOTAL_BYTES_AT);
      const length = before + more;
      starts.setUint16(network + IPV4_TOTAL_BYTES_AT, length);
      // RFC 1624, eqn. 3.
      const sum = (~starts.getUint16(network + IPV4_CHECKSUM_AT) & 0xffff) + (~before & 0xffff) + length;
      starts.setUint16(network + IPV4_CHECKSUM_AT, ~fold(sum) & 0xffff);
    } else {
      starts.setUint16(
        network + IPV6_PAYLOAD_BYTES_AT,
        starts.getUint16(network + IPV6_PAYLOAD_BYTES_AT) + more,
      );
    }
    starts.setUint8(transport + TCP_FLAGS_AT, this.#lastFlags[message]);
    starts.setUint16(transport + TCP_CHECKSUM_AT, fold(starts.getUint16(transport + TCP_CHECKSUM_AT) + more));
  }
}
