/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef COLO_MAPS_H
#define COLO_MAPS_H

#include "kernel.h"

/* Written by the loader before the programs are verified; the verifier sees constants. */
const volatile struct colo_settings settings = {};

/* 0 -> what the VM may do now; memory-mapped by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct colo_state);
} state_map SEC(".maps");

/* enum colo_counter -> frames, one number for each CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COLO_COUNTERS);
	__type(key, enum colo_counter);
	__type(value, __u64);
} counters SEC(".maps");

/* TCP connection -> how far the secondary's numbers are from those the client knows. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536); /* the loader may change it */
	__type(key, struct colo_connection_key);
	__type(value, struct colo_connection);
} connections SEC(".maps");

/* Held frames of the primary VM, in the order it sent them. The loader sets the sizes of the packet rings. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024 * 1024);
} primary_ring SEC(".maps");

/* What the secondary VM sent, as far as it has arrived here. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024 * 1024);
} secondary_ring SEC(".maps");

/* Input of the primary VM that arrived while a checkpoint was being prepared. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 * 1024 * 1024);
} input_ring SEC(".maps");

/* Wakes the comparer; what is in it does not matter. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} doorbell_ring SEC(".maps");

static __always_inline struct colo_state *current_state(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&state_map, &zero);
}

/* The agent writes these fields while programs run: each is read once, from memory. */
#define READ_STATE(state, field) (*(const volatile typeof((state)->field) *)&(state)->field)

static __always_inline void count(enum colo_counter which)
{
	__u64 *frames = bpf_map_lookup_elem(&counters, &which);

	if (frames)
		*frames += 1;
}

static __always_inline int drop(enum colo_counter why)
{
	count(why);
	return TC_ACT_SHOT;
}

/* Must come after the record has been submitted: the comparer sets the flag first and looks at the rings then. */
static __always_inline void ring_doorbell(struct colo_state *state)
{
	if (READ_STATE(state, consumer_sleeping) && __sync_lock_test_and_set(&state->consumer_sleeping, 0)) {
		__u64 token = 0;

		bpf_ringbuf_output(&doorbell_ring, &token, sizeof(token), BPF_RB_FORCE_WAKEUP);
	}
}

#endif
