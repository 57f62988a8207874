/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TCP numbers of a VM that is, or was, a secondary.
 *
 * Problem: both VMs open a connection with sequence numbers and timestamps of their own, but the client only
 * knows those of the VM that answered it.
 * Insight: the difference is fixed by the handshake. The secondary's SYN (or SYN|ACK) tells its own numbers;
 * the first acknowledgment from the client echoes the primary's. ack - 1 is the primary's initial sequence
 * number (RFC 9293, 3.4) and TSecr the primary's timestamp (RFC 7323, 3.2).
 * From then on everything from the guest is lowered by the difference and everything that echoes it
 * (acknowledgment, both edges of SACK blocks, TSecr) is raised by it.
 *
 * A checkpoint makes both VMs equal, so it invalidates all entries at once: their epoch is no longer the
 * current one. A VM that takes over keeps the entries of its last epoch for as long as those connections
 * live, through later protection by a new secondary too; the new secondary inherits them for the case that it
 * takes over.
 */
#ifndef COLO_REWRITE_H
#define COLO_REWRITE_H

#include "counters.h"
#include "parse.h"
#include "state.h"

#define WORD_BYTES 4
#define OPENING_MOVED 0x80000000	/* as far as sequence numbers can be apart */
#define LAST_SEEN_STEP_NS 1000000000ULL /* an entry in use is touched at most once a second */

/*
 * Bytes of a word that begins at an odd place count in the other half of the checksum's 16-bit words (RFC
 * 1071, 2B).
 */
static __always_inline __u32 swap_in_halves(__u32 word)
{
	return (word & 0x00ff00ff) << 8 | (word >> 8 & 0x00ff00ff);
}

/*
 * Adds `difference` to the 32-bit number at `offset`. bpf_l4_csum_replace without BPF_F_PSEUDO_HDR is right
 * for a full checksum and leaves a partial one alone, which covers the pseudo header only (net/core/utils.c,
 * inet_proto_csum_replace4).
 */
static __always_inline int add_to_word(struct __sk_buff *skb, const struct segment *segment, __u32 offset,
				       __u32 difference)
{
	__u32 checksum_offset = segment->offset + __builtin_offsetof(struct tcp_header, checksum_be);
	__u32 before, after;
	bool odd = (offset - segment->offset) & 1;

	if (bpf_skb_load_bytes(skb, offset, &before, sizeof(before)))
		return -1;
	after = bpf_htonl(bpf_ntohl(before) + difference);
	if (bpf_l4_csum_replace(skb, checksum_offset, odd ? swap_in_halves(before) : before,
				odd ? swap_in_halves(after) : after, sizeof(before)))
		return -1;
	return bpf_skb_store_bytes(skb, offset, &after, sizeof(after), 0) ? -1 : 0;
}

static __always_inline int read_word(struct __sk_buff *skb, __u32 offset, __u32 *value)
{
	__u32 word_be;

	if (bpf_skb_load_bytes(skb, offset, &word_be, sizeof(word_be)))
		return -1;
	*value = bpf_ntohl(word_be);
	return 0;
}

static __always_inline struct colo_connection *find_connection(struct colo_state *state,
							       const struct segment *segment)
{
	struct colo_connection *connection = bpf_map_lookup_elem(&connections, &segment->key);

	if (!connection)
		return 0;
	if (connection->flags & COLO_CONNECTION_INHERITED ||
	    connection->epoch == READ_STATE(state, rewrite_epoch))
		return connection;
	return 0;
}

/* Whether the offsets are to be applied on this host now. */
static __always_inline bool counts_here(struct colo_state *state, const struct colo_connection *connection)
{
	return !(connection->flags & COLO_CONNECTION_INHERITED) ||
	       READ_STATE(state, role) != COLO_ROLE_SECONDARY;
}

static __always_inline void set_flag(struct colo_connection *connection, enum colo_connection_flag flag)
{
	__sync_fetch_and_or((__u32 *)&connection->flags, flag);
}

/* Notes what the agent needs to know to forget the connection in time (src/ffi/connections.ts, collect). */
static __always_inline void touch_connection(struct colo_connection *connection,
					     const struct segment *segment, enum direction direction)
{
	enum colo_connection_flag fin =
		direction == FROM_GUEST ? COLO_CONNECTION_GUEST_FIN : COLO_CONNECTION_CLIENT_FIN;
	__u64 now_ns = bpf_ktime_get_boot_ns();

	if (now_ns - connection->last_seen_ns > LAST_SEEN_STEP_NS)
		connection->last_seen_ns = now_ns;
	if (segment->tcp.flags & TCP_RST) {
		if (!(connection->flags & COLO_CONNECTION_RESET))
			set_flag(connection, COLO_CONNECTION_RESET);
		return;
	}
	/* A guest that still sends has not taken the RST for one of this connection (RFC 5961, 3). */
	if (direction == FROM_GUEST && connection->flags & COLO_CONNECTION_RESET)
		__sync_fetch_and_and((__u32 *)&connection->flags, ~COLO_CONNECTION_RESET);
	if (segment->tcp.flags & TCP_FIN && !(connection->flags & fin))
		set_flag(connection, fin);
}

/* Remembers the numbers of a connection that the secondary opens or accepts. */
static __always_inline void learn_connection(struct __sk_buff *skb, struct colo_state *state,
					     const struct segment *segment)
{
	struct colo_connection connection = {
		.epoch = READ_STATE(state, rewrite_epoch),
		.isn = bpf_ntohl(segment->tcp.sequence_be),
		.last_seen_ns = bpf_ktime_get_boot_ns(),
	};

	if (segment->timestamps_offset && !read_word(skb, segment->timestamps_offset, &connection.syn_tsval))
		connection.flags |= COLO_CONNECTION_TIMESTAMPS;
	if (bpf_map_update_elem(&connections, &segment->key, &connection, BPF_ANY))
		count(COLO_COUNT_CONNECTION_FULL);
	else if (!READ_STATE(state, connections_kept))
		state->connections_kept = 1; /* after the update: who empties the map clears the flag first */
}

/* What the client acknowledges tells the primary's numbers. */
static __always_inline void learn_offsets(struct __sk_buff *skb, struct colo_connection *connection,
					  const struct segment *segment)
{
	__u32 echo = 0;

	connection->sequence_offset = connection->isn - (bpf_ntohl(segment->tcp.acknowledgment_be) - 1);
	connection->timestamp_offset = 0;
	if (connection->flags & COLO_CONNECTION_TIMESTAMPS && segment->timestamps_offset &&
	    !read_word(skb, segment->timestamps_offset + WORD_BYTES, &echo) && echo)
		connection->timestamp_offset = connection->syn_tsval - echo;
	/* A full barrier: who sees the flag sees the offsets. */
	set_flag(connection, COLO_CONNECTION_KNOWN);
}

/*
 * The guest was opening a connection when it took over, and sends its SYN again. The peer may know the old
 * primary's: that one had another number, but, with the same secret and almost the same clock (RFC 6528), one
 * close to it. A SYN within the peer's window resets what it lies in (net/ipv4/tcp_minisocks.c,
 * tcp_check_req). One far away is answered with an acknowledgment of what the peer knows; the guest resets
 * that, and its next SYN opens the connection.
 */
static __always_inline void move_opening(struct colo_connection *connection)
{
	connection->sequence_offset = OPENING_MOVED;
	connection->timestamp_offset = 0;
	set_flag(connection, COLO_CONNECTION_KNOWN);
}

/*
 * A frame of the guest, before it goes where the client's numbers count. 0, or negative if it was left half
 * rewritten and has to be dropped. `learning`: the guest is a secondary, so its connections get numbers of
 * their own.
 */
static __noinline int rewrite_from_guest(struct __sk_buff *skb, struct colo_state *state, bool learning)
{
	struct segment segment = {};
	struct colo_connection *connection;
	__u32 sequence_offset, timestamp_offset;

	if (!state || (!learning && !READ_STATE(state, connections_kept)) ||
	    parse_segment(skb, &segment, FROM_GUEST))
		return 0;
	connection = find_connection(state, &segment);
	if (segment.tcp.flags & TCP_SYN &&
	    (!connection || connection->isn != bpf_ntohl(segment.tcp.sequence_be))) {
		/*
		 * A new connection. A guest that runs alone shows its numbers to the client as they are; one
		 * that answers a duplicate SYN of a living connection does so without SYN (RFC 9293,
		 * 3.10.7.4).
		 */
		if (learning)
			learn_connection(skb, state, &segment);
		else if (connection)
			bpf_map_delete_elem(&connections, &segment.key);
		return 0;
	}
	if (!connection)
		return 0;
	touch_connection(connection, &segment, FROM_GUEST);
	if (!learning && (segment.tcp.flags & (TCP_SYN | TCP_ACK)) == TCP_SYN &&
	    !(connection->flags & COLO_CONNECTION_KNOWN))
		move_opening(connection);
	if (!(connection->flags & COLO_CONNECTION_KNOWN) || !counts_here(state, connection))
		return 0;
	sequence_offset = connection->sequence_offset;
	timestamp_offset = connection->timestamp_offset;
	if (sequence_offset &&
	    add_to_word(skb, &segment, segment.offset + __builtin_offsetof(struct tcp_header, sequence_be),
			-sequence_offset))
		return -1;
	if (timestamp_offset && segment.timestamps_offset &&
	    add_to_word(skb, &segment, segment.timestamps_offset, -timestamp_offset))
		return -1;
	return 0;
}

/*
 * A frame of the client, before it reaches the guest. 0, or negative if it has to be dropped. `mirrored`: the
 * primary's host has already applied the offsets that the VM has from an earlier takeover.
 */
static __noinline int rewrite_to_guest(struct __sk_buff *skb, struct colo_state *state, bool mirrored)
{
	struct segment segment = {};
	struct colo_connection *connection;
	__u32 sequence_offset, timestamp_offset;

	if (!state || !READ_STATE(state, connections_kept) || parse_segment(skb, &segment, TO_GUEST))
		return 0;
	connection = find_connection(state, &segment);
	if (!connection)
		return 0;
	touch_connection(connection, &segment, TO_GUEST);
	/* Without ACK neither the acknowledgment nor TSecr means anything (RFC 9293, 3.1; RFC 7323, 3.2). */
	if (!(segment.tcp.flags & TCP_ACK) || (mirrored && connection->flags & COLO_CONNECTION_INHERITED))
		return 0;
	if (!(connection->flags & COLO_CONNECTION_KNOWN))
		learn_offsets(skb, connection, &segment);
	sequence_offset = connection->sequence_offset;
	timestamp_offset = connection->timestamp_offset;
	if (sequence_offset) {
		if (add_to_word(skb, &segment,
				segment.offset + __builtin_offsetof(struct tcp_header, acknowledgment_be),
				sequence_offset))
			return -1;
		for (__u32 edge = 0; edge < 2 * TCP_SACK_BLOCKS_MAX; edge++) {
			if (edge >= segment.sack_edges)
				break;
			if (add_to_word(skb, &segment, segment.sack_offset + WORD_BYTES * edge,
					sequence_offset))
				return -1;
		}
	}
	if (timestamp_offset && segment.timestamps_offset) {
		__u32 echo;

		if (read_word(skb, segment.timestamps_offset + WORD_BYTES, &echo))
			return -1;
		if (echo &&
		    add_to_word(skb, &segment, segment.timestamps_offset + WORD_BYTES, timestamp_offset))
			return -1;
	}
	return 0;
}

#endif
