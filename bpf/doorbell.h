/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Wakes a worker that sleeps. */
#ifndef COLO_DOORBELL_H
#define COLO_DOORBELL_H

#include "maps.h"

/*
 * Must come after the record has been submitted: the worker sets its flag before it looks at its rings.
 * `others` are the rings of the other VM's frames. Both VMs' programs submit their record before they look at
 * the other's ring, so at least one of them rings.
 */
static __always_inline void ring_doorbell(struct colo_state *state, __u32 worker, void *others,
					  __u32 frame_bytes)
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
