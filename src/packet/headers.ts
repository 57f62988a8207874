/** Where the fields are in the headers of IPv4 (RFC 791), IPv6 (RFC 8200) and TCP (RFC 9293), in bytes. */

export const IPV4 = {
  serviceType: 1,
  totalBytes: 2,
  identification: 4,
  fragment: 6,
  timeToLive: 8,
  protocol: 9,
  checksum: 10,
  source: 12,
  destination: 16,
} as const;
/** Without options. */
export const IPV4_HEADER_BYTES = 20;
export const IPV4_ADDRESSES_BYTES = 8;

export const IPV6 = { payloadBytes: 4, nextHeader: 6, source: 8 } as const;
export const IPV6_HEADER_BYTES = 40;
export const IPV6_ADDRESSES_BYTES = 32;

export const TCP = {
  ports: 0,
  sequence: 4,
  acknowledgement: 8,
  /** In its high half the length of the header, in words of 4 bytes. */
  dataOffset: 12,
  flags: 13,
  window: 14,
  checksum: 16,
  urgent: 18,
} as const;
/** Without options. */
export const TCP_HEADER_BYTES = 20;
