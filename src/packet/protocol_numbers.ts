/**
 * Numbers of the protocols in a frame.
 *
 * Sources: include/uapi/linux/if_ether.h, IEEE 802.3 and 802.1Q, IANA's registers of protocol numbers and of
 * ICMP and ICMPv6 types, RFC 791 (IPv4), RFC 9293 (TCP).
 */

export const ETHERNET_HEADER_BYTES = 14;
export const ETHERTYPE_IPV4 = 0x0800;
export const ETHERTYPE_ARP = 0x0806;
export const ETHERTYPE_IPV6 = 0x86dd;
export const ETHERTYPE_VLAN = 0x8100;
export const ETHERTYPE_VLAN_SERVICE = 0x88a8;
/** Below it the field is a length (IEEE 802.3), not a type. */
export const ETHERTYPE_MIN = 0x0600;

export const PROTOCOL_HOP_BY_HOP = 0;
export const PROTOCOL_ICMP = 1;
export const PROTOCOL_TCP = 6;
export const PROTOCOL_UDP = 17;
export const PROTOCOL_IPV6_ROUTING = 43;
export const PROTOCOL_IPV6_FRAGMENT = 44;
export const PROTOCOL_ICMPV6 = 58;
export const PROTOCOL_IPV6_OPTIONS = 60;
export const PROTOCOL_SCTP = 132;
export const PROTOCOL_UDPLITE = 136;

/** Of the IPv4 field with flags and offset: 0 in a whole packet; the offset alone, in units of 8 bytes. */
export const IPV4_FRAGMENT_MASK = 0x3fff;
export const IPV4_OFFSET_MASK = 0x1fff;

export const ICMP_ECHO_REPLY = 0;
export const ICMP_ECHO = 8;
export const ICMP_TIMESTAMP = 13;
export const ICMP_TIMESTAMP_REPLY = 14;
export const ICMPV6_ECHO = 128;
export const ICMPV6_ECHO_REPLY = 129;
/** Router and neighbour solicitation and advertisement, redirect (RFC 4861): 133 to 137. */
export const ICMPV6_DISCOVERY_FIRST = 133;
export const ICMPV6_DISCOVERY_LAST = 137;

export const TCP_FIN = 0x01;
export const TCP_SYN = 0x02;
export const TCP_RST = 0x04;
export const TCP_ACK = 0x10;
export const TCP_URG = 0x20;
