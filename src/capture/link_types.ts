/**
 * From what a capture calls a packet to an Ethernet frame, which is what the comparer understands. Where the
 * link has no Ethernet header of its own, one with zero addresses is put in front.
 *
 * Source: the link-layer header types of the Tcpdump group (LINKTYPE_* pages), pcap/dlt.h.
 */
import type { PcapFile } from "../ffi/pcap.ts";
import { ETHERNET_HEADER_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6 } from "../packet/protocol_numbers.ts";

const DLT_NULL = 0;
const DLT_EN10MB = 1;
const DLT_RAW = 12;
const DLT_LOOP = 108;
const DLT_LINUX_SLL = 113;
const DLT_IPV4 = 228;
const DLT_IPV6 = 229;
const DLT_LINUX_SLL2 = 276;

const SLL_HEADER_BYTES = 16;
const SLL2_HEADER_BYTES = 20;
const MAC_BYTES = 6;

/** How packets of one capture become Ethernet frames. */
export interface LinkType {
  /**
   * Bytes of the capture's own header, which are replaced by an Ethernet header; 0 for Ethernet and bare IP.
   */
  readonly headerBytes: number;
  /** Bytes that are put in front: 0 for Ethernet. */
  readonly addedBytes: number;
  /** Fills the 14 bytes of a zeroed Ethernet header at `at`. The packet has at least headerBytes bytes. */
  writeHeader(packet: PcapFile, bytes: Uint8Array, at: number): void;
}

function put16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value & 0xff;
}

/** The link-layer address of the sender, as far as it fits. */
function putSource(packet: PcapFile, from: number, length: number, bytes: Uint8Array, at: number): void {
  for (let i = 0; i < Math.min(length, MAC_BYTES); i++) bytes[at + MAC_BYTES + i] = packet.byte(from + i);
}

function putType(bytes: Uint8Array, at: number, etherType: number): void {
  put16(bytes, at + 2 * MAC_BYTES, etherType);
}

function byIpVersion(packet: PcapFile, bytes: Uint8Array, at: number): void {
  if (packet.capturedBytes === 0) return;
  putType(bytes, at, packet.byte(0) >>> 4 === 6 ? ETHERTYPE_IPV6 : ETHERTYPE_IPV4);
}

/** AF_INET is 2 everywhere; AF_INET6 is 10, 24, 28 or 30. Either byte order: the number is below 256. */
function byAddressFamily(packet: PcapFile, bytes: Uint8Array, at: number): void {
  const family = packet.byte(0) | packet.byte(1) | packet.byte(2) | packet.byte(3);
  if (family === 2) putType(bytes, at, ETHERTYPE_IPV4);
  else if ([10, 24, 28, 30].includes(family)) putType(bytes, at, ETHERTYPE_IPV6);
}

const ETHERNET: LinkType = { headerBytes: 0, addedBytes: 0, writeHeader() {} };
const RAW: LinkType = { headerBytes: 0, addedBytes: ETHERNET_HEADER_BYTES, writeHeader: byIpVersion };
const LOOPBACK: LinkType = {
  headerBytes: 4,
  addedBytes: ETHERNET_HEADER_BYTES,
  writeHeader: byAddressFamily,
};

const LINK_TYPES: ReadonlyMap<number, LinkType> = new Map([
  [DLT_EN10MB, ETHERNET],
  [DLT_RAW, RAW],
  [DLT_IPV4, RAW],
  [DLT_IPV6, RAW],
  [DLT_NULL, LOOPBACK],
  [DLT_LOOP, LOOPBACK],
  [
    DLT_LINUX_SLL,
    {
      // packet type, ARPHRD_, address length, address (8), protocol
      headerBytes: SLL_HEADER_BYTES,
      addedBytes: ETHERNET_HEADER_BYTES,
      writeHeader(packet, bytes, at) {
        putSource(packet, 6, packet.byte(5), bytes, at);
        putType(bytes, at, (packet.byte(14) << 8) | packet.byte(15));
      },
    },
  ],
  [
    DLT_LINUX_SLL2,
    {
      // protocol, reserved (2), interface index (4), ARPHRD_ (2), packet type (1), address length (1),
      // address (8)
      headerBytes: SLL2_HEADER_BYTES,
      addedBytes: ETHERNET_HEADER_BYTES,
      writeHeader(packet, bytes, at) {
        putSource(packet, 12, packet.byte(11), bytes, at);
        putType(bytes, at, (packet.byte(0) << 8) | packet.byte(1));
      },
    },
  ],
]);

/** What to do with packets of a link type; undefined if they cannot be made Ethernet frames. */
export function linkTypeOf(dlt: number): LinkType | undefined {
  return LINK_TYPES.get(dlt);
}

export const SUPPORTED_LINK_TYPES = "EN10MB, LINUX_SLL, LINUX_SLL2, RAW, IPV4, IPV6, NULL, LOOP";

/**
 * Gives an IPv4 packet that says it is 0 bytes long the length it has: so are large TCP packets captured
 * before the network card cuts them, on some systems. `at` is the frame's first byte.
 */
export function repairIpv4Length(bytes: Uint8Array, at: number, frameBytes: number): void {
  const ip = at + ETHERNET_HEADER_BYTES;
  if (frameBytes < ETHERNET_HEADER_BYTES + 20 || bytes[ip - 2] !== 8 || bytes[ip - 1] !== 0) return;
  if (bytes[ip + 2] !== 0 || bytes[ip + 3] !== 0) return;
  const length = frameBytes - ETHERNET_HEADER_BYTES;
  if (length <= 0xffff) put16(bytes, ip + 2, length);
}
