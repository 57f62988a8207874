// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The data plane of a protected VM: its programs, in the order in which a frame meets them.
 *
 *   primary's host                                secondary's host
 *   from_vm      hold: into a ring                from_vm      forward: to the primary's comparer
 *   inject       a released frame comes back      from_tunnel  deliver: a mirrored frame
 *   release_frames  many of them at once
 *   to_vm        mirror: to both VMs              to_vm        lets only those through
 *   from_tunnel  collect: what the secondary sent
 *
 * Which of these a host does follows from its role in the state map (colo.h). Everything fails closed: a
 * missing state, an unknown role or a lease that has run out drops the frame and counts it.
 */
#include "input.h"
#include "live.h"
#include "output.h"
#include "tunnel_in.h"

/* Ingress of the tap: what the VM sends. */
SEC("tc")
int from_vm(struct __sk_buff *skb)
{
	struct colo_state *state = current_state();
	__u32 role;

	if (!state)
		return TC_ACT_SHOT;
	role = READ_STATE(state, role);
	if (skb->mark == settings.inject_mark || is_live(skb))
		return release(skb, state, role);
	switch (role) {
	case COLO_ROLE_SOLO:
		return pass_rewritten(skb, state, COLO_COUNT_PASSED_SOLO);
	case COLO_ROLE_PRIMARY:
		return hold(skb, state);
	case COLO_ROLE_SECONDARY:
		return forward(skb, state);
	case COLO_ROLE_SUCCESSOR:
		return succeed(skb, state);
	default:
		return drop(COLO_COUNT_DROPPED_BLOCKED);
	}
}

/*
 * Egress of the injection interface: what the agent releases continues as if the VM had just sent it. Here
 * and not at the ingress of its peer, which would cost a frame another round through the receive queue of the
 * CPU.
 */
SEC("tc")
int inject(struct __sk_buff *skb)
{
	skb->mark = settings.inject_mark;
	return bpf_redirect(settings.tap_ifindex, BPF_F_INGRESS);
}

/*
 * Run by a worker, as if at the tap's own ingress: each frame that it passes continues as if the VM had just
 * sent it.
 */
SEC("xdp")
int release_frames(struct xdp_md *packet)
{
	return release_next(packet);
}

/* Egress of the tap: what goes to the VM. */
SEC("tc")
int to_vm(struct __sk_buff *skb)
{
	struct colo_state *state = current_state();

	if (!state)
		return TC_ACT_SHOT;
	switch (READ_STATE(state, role)) {
	case COLO_ROLE_SOLO:
		return to_solo(skb, state);
	case COLO_ROLE_PRIMARY:
		return mirror(skb, state);
	case COLO_ROLE_SECONDARY:
		return to_secondary(skb);
	case COLO_ROLE_SUCCESSOR:
		return to_successor(skb, state);
	default:
		return drop(COLO_COUNT_INPUT_BLOCKED);
	}
}

/* Ingress of the tunnel device: what the other host sends. */
SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	struct colo_state *state = current_state();
	__u32 epoch;

	if (!state || read_sender(skb, &epoch))
		return drop(COLO_COUNT_DELIVER_REJECTED);
	switch (READ_STATE(state, role)) {
	case COLO_ROLE_PRIMARY:
		return collect(skb, state, epoch);
	case COLO_ROLE_SECONDARY:
	case COLO_ROLE_SUCCESSOR:
		return deliver(skb, state);
	default:
		return drop(COLO_COUNT_DELIVER_REJECTED);
	}
}

char _license[] SEC("license") = "Dual BSD/GPL";
