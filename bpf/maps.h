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

/* A ring of one worker; the loader makes them and chooses their size. */
struct worker_ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
};

/* Worker -> held frames of the primary VM, in the order it sent them. The loader sets the number of workers. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct worker_ring);
} primary_rings SEC(".maps");

/* Worker -> what the secondary VM sent, as far as it has arrived here. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct worker_ring);
} secondary_rings SEC(".maps");

/* Worker -> what wakes it; what is in it does not matter. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct worker_ring);
} doorbell_rings SEC(".maps");

/* Input of the primary VM that arrived while a checkpoint was being prepared. The first worker puts it back. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 * 1024 * 1024);
} input_ring SEC(".maps");

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

/*
 * Frames from this length on belong to a long transfer: the other VM has to send the same before anything can be done with
 * them, and the time that a worker needs to wake up matters less than what it costs. (For an answer of a few kilobytes it is the other way round:
 * woken by the first VM's frame, it is there when the second one's comes.)
 */
#define COLO_BULK_BYTES 16384

/*
 * Must come after the record has been submitted: the worker sets the flag first and looks at its rings then. `others` are the
 * rings of the other VM's frames. Both VMs' programs put their record first and look at the other's ring then, so one of them
 * rings.
 */
static __always_inline void ring_doorbell(struct colo_state *state, __u32 worker, void *others, __u32 frame_bytes)
{
	enum colo_sleep *sleeping = &state->consumer_sleeping[worker & (COLO_WORKERS_MAX - 1)];
	enum colo_sleep sleep = *(const volatile enum colo_sleep *)sleeping;

	if (sleep == COLO_SLEEP_NONE)
		return;
	if (sleep == COLO_SLEEP_PAIRED && frame_bytes >= COLO_BULK_BYTES) {
		void *other = bpf_map_lookup_elem(others, &worker);

		if (other && !bpf_ringbuf_query(other, BPF_RB_AVAIL_DATA))
			return;
	}
	if (__sync_lock_test_and_set(sleeping, COLO_SLEEP_NONE)) {
		void *doorbell = bpf_map_lookup_elem(&doorbell_rings, &worker);
		__u64 token = 0;

		if (doorbell)
			bpf_ringbuf_output(doorbell, &token, sizeof(token), BPF_RB_FORCE_WAKEUP);
	}
}

#endif
