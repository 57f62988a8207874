/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The output of the VM, by role. */
#ifndef COLO_OUTPUT_H
#define COLO_OUTPUT_H

#include "counters.h"
#include "lease.h"
#include "parse.h"
#include "record.h"
#include "rewrite.h"
#include "tunnel.h"

/* The only way out to the network. */
static __always_inline int pass(struct colo_state *state, enum colo_counter why)
{
	if (!lease_holds(state))
		return drop(COLO_COUNT_DROPPED_LEASE);
	count(why);
	return TC_ACT_OK;
}

/* As pass(), with the numbers that the client knows. They differ from the VM's own after a takeover. */
static __always_inline int pass_rewritten(struct __sk_buff *skb, struct colo_state *state,
					  enum colo_counter why)
{
	if (!lease_holds(state) || rewrite_from_guest(skb, state, false))
		return drop(COLO_COUNT_DROPPED_LEASE);
	count(why);
	return TC_ACT_OK;
}

/* A frame that the comparer has verified comes back. */
static __always_inline int release(struct __sk_buff *skb, struct colo_state *state, __u32 role)
{
	skb->mark = 0;
	if (role != COLO_ROLE_PRIMARY && role != COLO_ROLE_SOLO && role != COLO_ROLE_SUCCESSOR)
		return drop(COLO_COUNT_DROPPED_BLOCKED);
	return pass_rewritten(skb, state, COLO_COUNT_PASSED_RELEASED);
}

/*
 * The primary's frame waits in the ring with the VM's own numbers, which the secondary shares. The numbers of
 * a VM that took over earlier are rewritten when the frame is released.
 */
static __always_inline int hold(struct __sk_buff *skb, struct colo_state *state)
{
	if (is_address_resolution(skb))
		return pass(state, COLO_COUNT_PASSED_DIRECT);

	switch (put_for_worker(&primary_rings, &secondary_rings, skb, state, COLO_SOURCE_PRIMARY, 0)) {
	case PUT_DONE:
		return drop(COLO_COUNT_HELD);
	case PUT_RING_FULL:
		return drop(COLO_COUNT_HOLD_RING_FULL);
	default:
		return drop(COLO_COUNT_HOLD_FAILED);
	}
}

/* During a hand-over output is held until this host has the lease; then no comparer has to permit it. */
static __always_inline int succeed(struct __sk_buff *skb, struct colo_state *state)
{
	return lease_holds(state) ? pass_rewritten(skb, state, COLO_COUNT_PASSED_SOLO) : hold(skb, state);
}

/* The secondary's frame goes to the primary's comparer and nowhere else. */
static __always_inline int forward(struct __sk_buff *skb, struct colo_state *state)
{
	if (is_address_resolution(skb))
		return drop(COLO_COUNT_FORWARD_SUPPRESSED);
	if (rewrite_from_guest(skb, state, true) || address_to_peer(skb, state))
		return drop(COLO_COUNT_FORWARD_FAILED);
	count(COLO_COUNT_FORWARDED);
	return bpf_redirect(settings.tunnel_ifindex, 0);
}

#endif
