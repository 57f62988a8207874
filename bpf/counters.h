/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every frame that leaves a program is counted; every drop has a reason. */
#ifndef COLO_COUNTERS_H
#define COLO_COUNTERS_H

#include "maps.h"

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

#endif
