/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What becomes of a frame that is on its way to the VM, by role. */
#ifndef COLO_INPUT_H
#define COLO_INPUT_H

#include "output.h"
#include "record.h"
#include "rewrite.h"
#include "tunnel.h"

static __always_inline int to_solo(struct __sk_buff *skb, struct colo_state *state)
{
	if (skb->mark == settings.replay_mark) {
		skb->mark = 0;
		count(COLO_COUNT_REPLAYED);
	}
	if (rewrite_to_guest(skb, state, false))
		return drop(COLO_COUNT_INPUT_BLOCKED);
	count(COLO_COUNT_INPUT_SOLO);
	return TC_ACT_OK;
}

/* Before a checkpoint: both VMs have to go into it having seen the same input, so new input waits. */
static __always_inline int divert(struct __sk_buff *skb)
{
	if (put_record(&input_ring, skb, COLO_SOURCE_INPUT, 0, 0) != PUT_DONE)
		return drop(COLO_COUNT_DIVERT_FAILED);
	return drop(COLO_COUNT_DIVERTED);
}

/*
 * The primary gets the frame and the secondary a clone of it. The numbers of a VM that once took over are put right
 * before: the secondary is a copy of it and shares them. What the secondary's own connections need on top of that is
 * done on its own host.
 */
static __always_inline int mirror(struct __sk_buff *skb, struct colo_state *state)
{
	if (skb->mark == settings.replay_mark) {
		skb->mark = 0; /* before the clone, for the mark takes part in the tunnel's route lookup */
		count(COLO_COUNT_REPLAYED);
	} else if (READ_STATE(state, divert_input)) {
		return divert(skb);
	}
	if (rewrite_to_guest(skb, state, false))
		return drop(COLO_COUNT_DIVERT_FAILED);
	/* The tunnel key stays on the frame; the tap drops it before sending (net/core/dev.c, IFF_XMIT_DST_RELEASE). */
	if (address_to_peer(skb, state) || bpf_clone_redirect(skb, settings.tunnel_ifindex, 0))
		count(COLO_COUNT_MIRROR_FAILED);
	else
		count(COLO_COUNT_MIRRORED);
	return TC_ACT_OK;
}

/* Only what the primary mirrors reaches the secondary, not what its own bridge floods. */
static __always_inline int to_secondary(struct __sk_buff *skb)
{
	if (skb->mark != settings.deliver_mark)
		return drop(COLO_COUNT_FOREIGN_DROPPED);
	skb->mark = 0;
	return TC_ACT_OK;
}

/* While the VM is handed over its input comes from the old primary still, or from the network already. */
static __always_inline int to_successor(struct __sk_buff *skb, struct colo_state *state)
{
	if (skb->mark == settings.deliver_mark || !lease_holds(state))
		return to_secondary(skb);
	return to_solo(skb, state);
}

/* On the secondary's host: a mirrored frame arrives. */
static __always_inline int deliver(struct __sk_buff *skb, struct colo_state *state)
{
	if (rewrite_to_guest(skb, state, true))
		return drop(COLO_COUNT_DELIVER_REJECTED);
	skb->mark = settings.deliver_mark;
	count(COLO_COUNT_DELIVERED);
	return bpf_redirect(settings.tap_ifindex, 0);
}

/* On the primary's host: what the secondary sent arrives. */
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
