/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Frames between the two hosts travel in VXLAN; the VNI carries the VM's tunnel id and the epoch. */
#ifndef COLO_TUNNEL_H
#define COLO_TUNNEL_H

#include "state.h"

#define TUNNEL_TTL 64
#define EPOCH_MASK 0xffff
#define TUNNEL_ID_SHIFT 16

/*
 * The outer UDP checksum stays on: it is all that protects the epoch in the VXLAN header, and with an inner
 * checksum still to be filled in it costs nothing (Documentation/networking/checksum-offloads.rst, LCO).
 */
static __always_inline long address_to_peer(struct __sk_buff *skb, struct colo_state *state)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = settings.tunnel_id << TUNNEL_ID_SHIFT | (READ_STATE(state, epoch) & EPOCH_MASK),
		.remote_ipv4 = settings.peer_ipv4,
		.tunnel_ttl = TUNNEL_TTL,
	};

	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), 0);
}

/* 0 if the frame came from the peer and is about this VM. */
static __always_inline int read_sender(struct __sk_buff *skb, __u32 *epoch)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return -1;
	if (key.tunnel_id >> TUNNEL_ID_SHIFT != settings.tunnel_id || key.remote_ipv4 != settings.peer_ipv4)
		return -1;
	*epoch = key.tunnel_id & EPOCH_MASK;
	return 0;
}

#endif
