/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A frame on its way to the VM, by role. */
#ifndef COLO_INPUT_H
#define COLO_INPUT_H

#include "counters.h"
#include "lease.h"
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

/* Both VMs must have consumed the same input at a checkpoint, so new input waits until it is over. */
static __always_inline int divert(struct __sk_buff *skb)
{
	if (put_record(&input_ring, skb, COLO_SOURCE_INPUT, 0, 0) != PUT_DONE)
		return drop(COLO_COUNT_DIVERT_FAILED);
	return drop(COLO_COUNT_DIVERTED);
}

/*
 * The primary gets the frame and the secondary a clone of it. The numbers of a VM that took over earlier are
 * rewritten first: the secondary is a copy of it and shares them. The secondary's own connections are
 * rewritten on its host.
 */
static __always_inline int mirror(struct __sk_buff *skb, struct colo_state *state)
{
	if (skb->mark == settings.replay_mark) {
		skb->mark = 0; /* before the clone: the mark takes part in the tunnel's route lookup */
		count(COLO_COUNT_REPLAYED);
	} else if (READ_STATE(state, divert_input)) {
		return divert(skb);
	}
	if (rewrite_to_guest(skb, state, false))
		return drop(COLO_COUNT_DIVERT_FAILED);
	/*
	 * The tunnel key stays on the frame; the tap drops it before sending (net/core/dev.c,
	 * IFF_XMIT_DST_RELEASE).
	 */
	if (address_to_peer(skb, state) || bpf_clone_redirect(skb, settings.tunnel_ifindex, 0))
		count(COLO_COUNT_MIRROR_FAILED);
	else
		count(COLO_COUNT_MIRRORED);
	return TC_ACT_OK;
}

/* Only mirrored frames reach the secondary, not those that its own bridge floods. */
static __always_inline int to_secondary(struct __sk_buff *skb)
{
	if (skb->mark != settings.deliver_mark)
		return drop(COLO_COUNT_FOREIGN_DROPPED);
	skb->mark = 0;
	return TC_ACT_OK;
}

/* During a hand-over the VM's input comes from the old primary's mirror or already from the network. */
static __always_inline int to_successor(struct __sk_buff *skb, struct colo_state *state)
{
	if (skb->mark == settings.deliver_mark || !lease_holds(state))
		return to_secondary(skb);
	return to_solo(skb, state);
}

#endif
