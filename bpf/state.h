/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the agent writes for the programs: settings at load time, and the state of the VM while they run. */
#ifndef COLO_STATE_H
#define COLO_STATE_H

#include "maps.h"

/* Written by the loader before the programs are verified; the verifier sees constants. */
const volatile struct colo_settings settings = {};

static __always_inline struct colo_state *current_state(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&state_map, &zero);
}

/* The agent writes these fields while programs run: each is read once, from memory. */
#define READ_STATE(state, field) (*(const volatile typeof((state)->field) *)&(state)->field)

#endif
