/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which worker compares a frame.
 *
 * Each worker has a comparer of its own, so what one comparer has to see together must go to one worker: all
 * frames of a TCP connection; and the fragments of a datagram with the datagrams of its flow that were not
 * cut up, of which only the first fragment tells the ports. So TCP right behind an IP header, in one piece,
 * goes by addresses and ports and everything else of IP by addresses; what is not IP goes to the first
 * worker. Primary and secondary frames get here on the same host, in the same direction, and nothing else
 * takes part: no field in which the two VMs may differ.
 *
 * A connection of which some segments come in fragments, or behind IPv6 extension headers, and others do not
 * is judged by two workers: each of them misses what the other has and asks for a checkpoint. No guest's TCP
 * does that (it knows the path's MTU).
 */
#ifndef COLO_WORKER_H
#define COLO_WORKER_H

#include "parse.h"
#include "state.h"

static __always_inline __u32 mix_word(__u32 hash, const void *word)
{
	__u32 value;

	__builtin_memcpy(&value, word, sizeof(value));
	hash = (hash ^ value) * 0x9e3779b1;
	return hash ^ hash >> 15;
}

/* MurmurHash3's last steps (public domain): every bit of the hash depends on every bit before. */
static __always_inline __u32 finish_hash(__u32 hash)
{
	hash *= 0x85ebca6b;
	hash ^= hash >> 13;
	hash *= 0xc2b2ae35;
	return hash ^ hash >> 16;
}

static __always_inline __u32 mix_ports(struct __sk_buff *skb, __u32 hash, __u32 offset)
{
	__u32 ports_be;

	if (bpf_skb_load_bytes(skb, offset, &ports_be, sizeof(ports_be)))
		return hash;
	return mix_word(hash, &ports_be);
}

static __noinline __u32 flow_hash(struct __sk_buff *skb)
{
	struct frame frame = {};
	__u32 hash = 0;

	if (parse_frame(skb, &frame))
		return 0;
	if (frame.ethertype == ETH_P_IP) {
		struct ipv4_header ip;
		__u32 words;

		if (bpf_skb_load_bytes(skb, frame.network_offset, &ip, sizeof(ip)))
			return 0;
		words = ip.version_and_words & 0xf;
		if (ip.version_and_words >> 4 != 4 || words < 5)
			return 0;
		hash = mix_word(mix_word(hash, ip.source), ip.destination);
		if (ip.protocol == IPPROTO_TCP && !(bpf_ntohs(ip.fragment_be) & IPV4_FRAGMENT_MASK))
			hash = mix_ports(skb, hash, frame.network_offset + words * 4);
		return finish_hash(hash);
	}
	if (frame.ethertype == ETH_P_IPV6) {
		struct ipv6_header ip;

		if (bpf_skb_load_bytes(skb, frame.network_offset, &ip, sizeof(ip)))
			return 0;
		for (int i = 0; i < 16; i += 4)
			hash = mix_word(mix_word(hash, ip.source + i), ip.destination + i);
		if (ip.next_header == IPPROTO_TCP)
			hash = mix_ports(skb, hash, frame.network_offset + sizeof(ip));
		return finish_hash(hash);
	}
	return 0;
}

static __always_inline __u32 worker_of(__u32 hash)
{
	return (__u64)hash * settings.workers >> 32;
}

#endif
