/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The lease: the time up to which this host's VM may send to the network. The agent extends it; the programs
 * check it for each frame, so the VM of an agent that hangs or dies stops sending by itself.
 */
#ifndef COLO_LEASE_H
#define COLO_LEASE_H

#include "state.h"

static __always_inline bool lease_holds(struct colo_state *state)
{
	return bpf_ktime_get_boot_ns() < READ_STATE(state, lease_deadline_ns);
}

#endif
