/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A frame between a worker's ring and an XDP packet: room for it, and for the padding that its checksum
 * needs.
 */
#ifndef COLO_LIVE_FRAME_H
#define COLO_LIVE_FRAME_H

#include "kernel.h"

/* bpf_csum_diff takes at most this many bytes at a time before Linux 6.13. */
#define CHECKSUM_BYTES 512

struct live_frame {
	__u8 padding[6]; /* aligns the frame's first byte */
	struct colo_vnet_hdr vnet;
	__u8 frame[COLO_LIVE_FRAME_MAX + CHECKSUM_BYTES];
};

#endif
