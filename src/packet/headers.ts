/**
 * Where the fields are in the headers of IPv4 (RFC 791), IPv6 (RFC 8200) and TCP (RFC 9293), in bytes.
 *
 * Each is a number of its own: the engine reads members of an object again for each frame.
 */

export const IPV4_TOTAL_BYTES_AT = 2;
export const IPV4_IDENTIFICATION_AT = 4;
export const IPV4_FRAGMENT_AT = 6;
export const IPV4_TIME_TO_LIVE_AT = 8;
export const IPV4_PROTOCOL_AT = 9;
export const IPV4_CHECKSUM_AT = 10;
export const IPV4_SOURCE_AT = 12;
export const IPV4_DESTINATION_AT = 16;
/** Without options. */
export const IPV4_HEADER_BYTES = 20;
export const IPV4_ADDRESSES_BYTES = 8;

export const IPV6_PAYLOAD_BYTES_AT = 4;
export const IPV6_NEXT_HEADER_AT = 6;
export const IPV6_SOURCE_AT = 8;
export const IPV6_HEADER_BYTES = 40;
export const IPV6_ADDRESSES_BYTES = 32;

export const TCP_PORTS_AT = 0;
export const TCP_SEQUENCE_AT = 4;
export const TCP_ACKNOWLEDGEMENT_AT = 8;
/** In its high half the length of the header, in words of 4 bytes. */
export const TCP_DATA_OFFSET_AT = 12;
export const TCP_FLAGS_AT = 13;
export const TCP_WINDOW_AT = 14;
export const TCP_CHECKSUM_AT = 16;
export const TCP_URGENT_AT = 18;
/** Without options. */
export const TCP_HEADER_BYTES = 20;
