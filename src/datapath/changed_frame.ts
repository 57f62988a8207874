/**
 * Writes the headers of a TCP frame that leaves with another window or acknowledgement, or with only a part
 * of its payload (src/compare/frame_change.ts). The rings are mapped read-only, so the record stays as it is;
 * the payload is sent from there.
 */
import type { FrameChange } from "../compare/frame_change.ts";
import { parseRecord } from "../compare/parse.ts";
import { ParsedFrame } from "../compare/parsed_frame.ts";
import { RECORD, VNET, VNET_BYTES, VNET_GSO, VNET_NEEDS_CHECKSUM } from "../ffi/layout.ts";
import { fold } from "../packet/checksum.ts";
import {
  IPV4_ADDRESSES_BYTES,
  IPV4_CHECKSUM_AT,
  IPV4_SOURCE_AT,
  IPV4_TOTAL_BYTES_AT,
  IPV6_ADDRESSES_BYTES,
  IPV6_PAYLOAD_BYTES_AT,
  IPV6_SOURCE_AT,
  TCP_ACKNOWLEDGEMENT_AT,
  TCP_CHECKSUM_AT,
  TCP_DATA_OFFSET_AT,
  TCP_SEQUENCE_AT,
  TCP_WINDOW_AT,
} from "../packet/headers.ts";
import {
  ETHERNET_HEADER_BYTES,
  ETHERTYPE_IPV4,
  ETHERTYPE_VLAN,
  ETHERTYPE_VLAN_SERVICE,
  PROTOCOL_TCP,
  TCP_FIN,
} from "../packet/protocol_numbers.ts";

const VLAN_TAG_BYTES = 4;

export class ChangedFrames {
  readonly #frame = new ParsedFrame();
  readonly #bytes: Uint8Array;
  readonly #view: DataView;

  constructor(source: { readonly bytes: Uint8Array; readonly view: DataView }) {
    this.#bytes = source.bytes;
    this.#view = source.view;
  }

  /**
   * Writes virtio_net_hdr and headers of the TCP frame in the record at `offset`, as `change` says.
   * Allocation free.
   *
   * @returns how many bytes that are; change.payload and change.payloadBytes say what follows
   */
  writeStart(offset: number, change: FrameChange, target: DataView, at: number): number {
    const frame = this.#frame;
    const source = this.#view;
    parseRecord(this.#bytes, offset, frame);
    const from = offset + RECORD.vnet;
    const startBytes = frame.data - from;
    // A byte loop: for so few, quicker than the views that set() needs.
    for (let i = 0; i < startBytes; i++) target.setUint8(at + i, source.getUint8(from + i));

    const transport = at + frame.transport - from;
    const isCut = change.payloadBytes !== frame.dataBytes;
    if (isCut) this.#cut(target, at, transport, frame.dataBytes - change.payloadBytes, change.payloadBytes);
    // A checksum that is still to be filled in covers none of these fields.
    const isPartial = (target.getUint8(at + VNET.flags) & VNET_NEEDS_CHECKSUM) !== 0;
    const checksumAt = isPartial ? -1 : transport + TCP_CHECKSUM_AT;
    if (change.sequence !== frame.sequence)
      setLong(target, transport + TCP_SEQUENCE_AT, change.sequence, checksumAt);
    setLong(target, transport + TCP_ACKNOWLEDGEMENT_AT, change.acknowledgement, checksumAt);
    setWord(target, transport + TCP_WINDOW_AT, change.window, checksumAt);
    if (!change.fin) {
      // The word of which the flags are the low half.
      const flags = target.getUint16(transport + TCP_DATA_OFFSET_AT);
      setWord(target, transport + TCP_DATA_OFFSET_AT, flags & ~TCP_FIN, checksumAt);
    }
    return startBytes;
  }

  /**
   * Sets all lengths to those of a frame with `payloadBytes`, and lets the kernel fill in its TCP checksum.
   */
  #cut(target: DataView, at: number, transport: number, lessBytes: number, payloadBytes: number): void {
    const network = networkOffset(target, at + VNET_BYTES);
    const tcpBytes = (target.getUint8(transport + TCP_DATA_OFFSET_AT) >> 4) * 4;
    let addresses: number;
    let addressesBytes: number;
    if (target.getUint16(network - 2) === ETHERTYPE_IPV4) {
      const totalBytes = target.getUint16(network + IPV4_TOTAL_BYTES_AT);
      setWord(target, network + IPV4_TOTAL_BYTES_AT, totalBytes - lessBytes, network + IPV4_CHECKSUM_AT);
      addresses = network + IPV4_SOURCE_AT;
      addressesBytes = IPV4_ADDRESSES_BYTES;
    } else {
      const ipPayloadBytes = target.getUint16(network + IPV6_PAYLOAD_BYTES_AT);
      target.setUint16(network + IPV6_PAYLOAD_BYTES_AT, ipPayloadBytes - lessBytes);
      addresses = network + IPV6_SOURCE_AT;
      addressesBytes = IPV6_ADDRESSES_BYTES;
    }
    const checksum = transport + TCP_CHECKSUM_AT;
    const segmentBytes = tcpBytes + payloadBytes;
    if ((target.getUint8(at + VNET.flags) & VNET_NEEDS_CHECKSUM) !== 0) {
      // The sum of the pseudo header, in which the length has changed.
      target.setUint16(
        checksum,
        fold(target.getUint16(checksum) + (~(segmentBytes + lessBytes) & 0xffff) + segmentBytes),
      );
    } else {
      let sum = PROTOCOL_TCP + segmentBytes;
      for (let i = 0; i < addressesBytes; i += 2) sum += target.getUint16(addresses + i);
      target.setUint16(checksum, fold(sum));
      target.setUint8(at + VNET.flags, VNET_NEEDS_CHECKSUM);
      target.setUint16(at + VNET.csum_start, transport - at - VNET_BYTES, true);
      target.setUint16(at + VNET.csum_offset, TCP_CHECKSUM_AT, true);
    }
    target.setUint16(at + VNET.hdr_len, transport - at - VNET_BYTES + tcpBytes, true);
    if (payloadBytes <= target.getUint16(at + VNET.gso_size, true)) {
      target.setUint8(at + VNET.gso_type, VNET_GSO.NONE);
      target.setUint16(at + VNET.gso_size, 0, true);
    }
  }
}

/** Where the IP header begins; the EtherType is right before it. */
function networkOffset(target: DataView, ethernet: number): number {
  let network = ethernet + ETHERNET_HEADER_BYTES;
  for (;;) {
    const etherType = target.getUint16(network - 2);
    if (etherType !== ETHERTYPE_VLAN && etherType !== ETHERTYPE_VLAN_SERVICE) return network;
    network += VLAN_TAG_BYTES;
  }
}

/** Sets a 16-bit field and what a checksum at `checksumAt` (-1: none) says of it (RFC 1624, eqn. 3). */
function setWord(target: DataView, at: number, value: number, checksumAt: number): void {
  const before = target.getUint16(at);
  if (before === value) return;
  target.setUint16(at, value);
  if (checksumAt < 0) return;
  const sum = (~target.getUint16(checksumAt) & 0xffff) + (~before & 0xffff) + value;
  target.setUint16(checksumAt, ~fold(sum) & 0xffff);
}

function setLong(target: DataView, at: number, value: number, checksumAt: number): void {
  setWord(target, at, (value >>> 16) & 0xffff, checksumAt);
  setWord(target, at + 2, value & 0xffff, checksumAt);
}
