/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A frame that arrives from the other host, by role. */
#ifndef COLO_TUNNEL_IN_H
#define COLO_TUNNEL_IN_H

#include "counters.h"
#include "record.h"
#include "rewrite.h"

/* On the secondary's host: a frame that the primary mirrored. */
static __always_inline int deliver(struct __sk_buff *skb, struct colo_state *state)
{
	if (rewrite_to_guest(skb, state, true))
		return drop(COLO_COUNT_DELIVER_REJECTED);
	skb->mark = settings.deliver_mark;
	count(COLO_COUNT_DELIVERED);
	return bpf_redirect(settings.tap_ifindex, 0);
}

/* On the primary's host: a frame that the secondary forwarded. */
static __always_inline int collect(struct __sk_buff *skb, struct colo_state *state, __u32 epoch)
{
	switch (put_for_worker(&secondary_rings, &primary_rings, skb, state, COLO_SOURCE_SECONDARY, epoch)) {
	case PUT_DONE:
		return drop(COLO_COUNT_COLLECTED);
	case PUT_RING_FULL:
		return drop(COLO_COUNT_COLLECT_RING_FULL);
	default:
		return drop(COLO_COUNT_COLLECT_FAILED);
	}
}

#endif
