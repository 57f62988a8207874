/**
 * The parser for the usual frame. It reads a few words at fixed places, which is several times as fast as the
 * full parser (parse.ts), and leaves every other frame to that.
 *
 * Sources: RFC 791, RFC 8200, RFC 9293.
 */
import { RECORD, RECORD_HEADER_BYTES } from "../ffi/layout.ts";
import {
  ETHERTYPE_IPV4,
  ETHERTYPE_IPV6,
  IPV4_FRAGMENT_MASK,
  PROTOCOL_TCP,
  TCP_ACK,
  TCP_FIN,
  TCP_RST,
  TCP_SYN,
  TCP_URG,
} from "../packet/protocol_numbers.ts";
import { type ParsedFrame, recordTimeNs } from "./parsed_frame.ts";

/**
 * parseRecord() for the usual frame, without the flow's key: TCP with ACK and neither SYN, FIN, RST nor URG,
 * whole, untagged, over IPv4 without options or IPv6 without extension headers. Returns false for every other
 * frame, also a malformed one; the contents of `frame` are then undefined.
 */
export function parsePlainTcp(view: DataView, offset: number, frame: ParsedFrame): boolean {
  const start = offset + RECORD_HEADER_BYTES;
  const frameBytes = view.getUint32(offset + RECORD.frame_bytes, true);
  if (frameBytes < 54 || start + frameBytes > view.byteLength) return false;
  const etherType = view.getUint16(start + 12);
  let at: number;
  let end: number;
  if (etherType === ETHERTYPE_IPV4) {
    if (view.getUint8(start + 14) !== 0x45 || view.getUint8(start + 23) !== PROTOCOL_TCP) return false;
    if ((view.getUint16(start + 20) & IPV4_FRAGMENT_MASK) !== 0) return false;
    at = start + 34;
    end = start + 14 + view.getUint16(start + 16);
    frame.version = 4;
  } else if (etherType === ETHERTYPE_IPV6) {
    if (view.getUint8(start + 14) >> 4 !== 6 || view.getUint8(start + 20) !== PROTOCOL_TCP) return false;
    at = start + 54;
    end = at + view.getUint16(start + 18);
    frame.version = 6;
  } else return false;
  if (end > start + frameBytes || at + 20 > end) return false;
  const data = at + (view.getUint8(at + 12) >> 4) * 4;
  if (data < at + 20 || data > end) return false;
  const flags = view.getUint8(at + 13);
  if ((flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK | TCP_URG)) !== TCP_ACK) return false;
  frame.flags = flags;
  frame.transport = at;
  frame.timeNs = recordTimeNs(view, offset);
  frame.epoch = view.getUint32(offset + RECORD.epoch, true) & 0xffff;
  frame.sequence = view.getInt32(at + 4);
  frame.acknowledgement = view.getInt32(at + 8);
  frame.window = view.getUint16(at + 14);
  frame.data = data;
  frame.dataBytes = end - data;
  frame.end = (frame.sequence + frame.dataBytes) | 0;
  return true;
}
