/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads headers with bpf_skb_load_bytes, which works wherever in the skb the bytes lie. A frame that cannot
 * be read is none of the kinds asked about: it is held or forwarded like any other frame, and the comparer
 * judges it.
 */
#ifndef COLO_PARSE_H
#define COLO_PARSE_H

#include "kernel.h"

#define VLAN_TAG_BYTES 4
#define VLAN_TAGS_MAX 2		  /* tags within the frame's bytes; one more may be in the skb's metadata */
#define IPV6_EXTENSIONS_MAX 6	  /* headers walked before the transport header */
#define IPV4_FRAGMENT_MASK 0x3fff /* more fragments, and the offset (RFC 791, 3.1) */
#define IPV4_FRAGMENT_OFFSET_MASK 0x1fff
#define IPV6_FRAGMENT_OFFSET_MASK 0xfff8 /* RFC 8200, 4.5 */
#define IPV6_FRAGMENT_HEADER_BYTES 8
#define IPV6_EXTENSION_WORD_BYTES 8 /* unit of an extension header's length */
#define TCP_OPTIONS_MAX 40	    /* bytes, and so at most as many options (RFC 9293, 3.1) */
#define TCP_SACK_BLOCKS_MAX 4	    /* RFC 2018, 3 */
#define ETHERTYPE_RARP 0x8035	    /* QEMU announces a VM's new place with it (net/announce.c) */

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
#define TCP_OPTION_SACK 5
#define TCP_OPTION_TIMESTAMPS 8
#define TCP_OPTION_TIMESTAMPS_BYTES 10
#define TCP_OPTION_HEADER_BYTES 2 /* kind and length (RFC 9293, 3.1) */
#define TCP_SACK_BLOCK_BYTES 8	  /* two edges of 32 bits (RFC 2018, 3) */

#define ICMPV6_ROUTER_SOLICITATION 133 /* the first of RFC 4861's five types */
#define ICMPV6_REDIRECT 137	       /* the last */

struct ipv4_header {
	__u8 version_and_words;
	__u8 tos;
	__u16 bytes_be;
	__u16 id_be;
	__u16 fragment_be;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum_be;
	__u8 source[4];
	__u8 destination[4];
};

struct ipv6_header {
	__u32 version_class_flow_be;
	__u16 payload_bytes_be;
	__u8 next_header;
	__u8 hop_limit;
	__u8 source[16];
	__u8 destination[16];
};

struct tcp_header {
	__u16 source_be;
	__u16 destination_be;
	__u32 sequence_be;
	__u32 acknowledgment_be;
	__u8 words_and_reserved;
	__u8 flags;
	__u16 window_be;
	__u16 checksum_be;
	__u16 urgent_be;
};

/* Where the network header begins, and what it is. */
struct frame {
	__u32 network_offset;
	__u16 ethertype; /* host byte order */
};

static __always_inline bool is_vlan(__u16 ethertype)
{
	return ethertype == ETH_P_8021Q || ethertype == ETH_P_8021AD;
}

static __always_inline int parse_frame(struct __sk_buff *skb, struct frame *frame)
{
	__u32 offset = 2 * ETH_ALEN;
	__u16 ethertype_be;

	for (int tag = 0; tag <= VLAN_TAGS_MAX; tag++) {
		if (bpf_skb_load_bytes(skb, offset, &ethertype_be, sizeof(ethertype_be)))
			return -1;
		if (!is_vlan(bpf_ntohs(ethertype_be)))
			break;
		offset += VLAN_TAG_BYTES;
	}
	frame->ethertype = bpf_ntohs(ethertype_be);
	frame->network_offset = offset + sizeof(ethertype_be);
	return 0;
}

/* ARP, RARP and IPv6 neighbour discovery: they describe the host itself and belong to no flow. */
static __always_inline bool is_address_resolution(struct __sk_buff *skb)
{
	struct ipv6_header ip;
	struct frame frame;
	__u8 type;

	if (parse_frame(skb, &frame))
		return false;
	if (frame.ethertype == ETH_P_ARP || frame.ethertype == ETHERTYPE_RARP)
		return true;
	if (frame.ethertype != ETH_P_IPV6)
		return false;
	if (bpf_skb_load_bytes(skb, frame.network_offset, &ip, sizeof(ip)))
		return false;
	/* RFC 4861, 7.1.1: a hop limit of 255 is part of what makes it neighbour discovery. */
	if (ip.next_header != IPPROTO_ICMPV6 || ip.hop_limit != 255)
		return false;
	if (bpf_skb_load_bytes(skb, frame.network_offset + sizeof(ip), &type, sizeof(type)))
		return false;
	return type >= ICMPV6_ROUTER_SOLICITATION && type <= ICMPV6_REDIRECT;
}

enum direction {
	FROM_GUEST,
	TO_GUEST,
};

/* A TCP header, where it is, and the connection it belongs to. */
struct segment {
	struct colo_connection_key key;
	__u32 offset; /* of the TCP header in the frame */
	struct tcp_header tcp;
	__u32 timestamps_offset; /* of the option's TSval in the frame, 0 if there is none */
	__u32 sack_offset;	 /* of the first block's left edge, 0 if there is none */
	__u32 sack_edges;
};

/* RFC 8200, 4.1; a fragment other than the first has no transport header. */
static __always_inline int skip_ipv6_extensions(struct __sk_buff *skb, __u8 *next_header, __u32 *offset)
{
	for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		struct {
			__u8 next_header;
			__u8 words;
			__u16 fragment_be;
		} extension;
		__u8 kind = *next_header;

		if (kind != IPPROTO_HOPOPTS && kind != IPPROTO_ROUTING && kind != IPPROTO_DSTOPTS &&
		    kind != IPPROTO_FRAGMENT)
			return 0;
		if (bpf_skb_load_bytes(skb, *offset, &extension, sizeof(extension)))
			return -1;
		if (kind == IPPROTO_FRAGMENT) {
			if (bpf_ntohs(extension.fragment_be) & IPV6_FRAGMENT_OFFSET_MASK)
				return -1;
			*offset += IPV6_FRAGMENT_HEADER_BYTES;
		} else {
			*offset += (extension.words + 1) * IPV6_EXTENSION_WORD_BYTES;
		}
		*next_header = extension.next_header;
	}
	return 0;
}

static __always_inline int parse_network(struct __sk_buff *skb, struct segment *segment,
					 enum direction direction)
{
	struct colo_connection_key *key = &segment->key;
	struct frame frame;

	if (parse_frame(skb, &frame))
		return -1;
	if (frame.ethertype == ETH_P_IP) {
		struct ipv4_header ip;

		if (bpf_skb_load_bytes(skb, frame.network_offset, &ip, sizeof(ip)))
			return -1;
		if (ip.version_and_words >> 4 != 4 || (ip.version_and_words & 0xf) < 5)
			return -1;
		if (ip.protocol != IPPROTO_TCP || (bpf_ntohs(ip.fragment_be) & IPV4_FRAGMENT_OFFSET_MASK))
			return -1;
		key->ip_version = 4;
		__builtin_memcpy(key->guest_address, direction == FROM_GUEST ? ip.source : ip.destination, 4);
		__builtin_memcpy(key->client_address, direction == FROM_GUEST ? ip.destination : ip.source,
				 4);
		segment->offset = frame.network_offset + (ip.version_and_words & 0xf) * 4;
		return 0;
	}
	if (frame.ethertype == ETH_P_IPV6) {
		struct ipv6_header ip;
		__u32 offset = frame.network_offset + sizeof(ip);
		__u8 next_header;

		if (bpf_skb_load_bytes(skb, frame.network_offset, &ip, sizeof(ip)))
			return -1;
		next_header = ip.next_header;
		if (skip_ipv6_extensions(skb, &next_header, &offset) || next_header != IPPROTO_TCP)
			return -1;
		key->ip_version = 6;
		__builtin_memcpy(key->guest_address, direction == FROM_GUEST ? ip.source : ip.destination,
				 16);
		__builtin_memcpy(key->client_address, direction == FROM_GUEST ? ip.destination : ip.source,
				 16);
		segment->offset = offset;
		return 0;
	}
	return -1;
}

/* Finds the first timestamps option (RFC 7323) and SACK option (RFC 2018); stops at a malformed one. */
static __always_inline void parse_tcp_options(struct __sk_buff *skb, struct segment *segment)
{
	__u32 offset = segment->offset + sizeof(struct tcp_header);
	__u32 end = segment->offset + (segment->tcp.words_and_reserved >> 4) * 4;

	for (int i = 0; i < TCP_OPTIONS_MAX; i++) {
		struct {
			__u8 kind;
			__u8 bytes;
		} option;

		if (offset >= end || bpf_skb_load_bytes(skb, offset, &option.kind, 1) ||
		    option.kind == TCP_OPTION_END)
			return;
		if (option.kind == TCP_OPTION_NOP) {
			offset += 1;
			continue;
		}
		if (bpf_skb_load_bytes(skb, offset, &option, sizeof(option)) ||
		    option.bytes < TCP_OPTION_HEADER_BYTES || offset + option.bytes > end)
			return;
		if (option.kind == TCP_OPTION_TIMESTAMPS && option.bytes == TCP_OPTION_TIMESTAMPS_BYTES &&
		    !segment->timestamps_offset)
			segment->timestamps_offset = offset + TCP_OPTION_HEADER_BYTES;
		if (option.kind == TCP_OPTION_SACK && !segment->sack_offset) {
			segment->sack_offset = offset + TCP_OPTION_HEADER_BYTES;
			segment->sack_edges =
				(option.bytes - TCP_OPTION_HEADER_BYTES) / TCP_SACK_BLOCK_BYTES * 2;
		}
		offset += option.bytes;
	}
}

/* 0 if the frame is a TCP segment whose header can be read. */
static __always_inline int parse_segment(struct __sk_buff *skb, struct segment *segment,
					 enum direction direction)
{
	struct tcp_header *tcp = &segment->tcp;

	if (parse_network(skb, segment, direction))
		return -1;
	if (bpf_skb_load_bytes(skb, segment->offset, tcp, sizeof(*tcp)) || tcp->words_and_reserved >> 4 < 5)
		return -1;
	segment->key.guest_port_be = direction == FROM_GUEST ? tcp->source_be : tcp->destination_be;
	segment->key.client_port_be = direction == FROM_GUEST ? tcp->destination_be : tcp->source_be;
	parse_tcp_options(skb, segment);
	return 0;
}

#endif
