/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Many small frames released at once: the worker runs an XDP program on "live frames" (BPF_F_TEST_XDP_LIVE_FRAMES,
 * net/bpf/test_run.c), and what the program passes has arrived at the tap. A frame's way is half as long as through a
 * packet socket: no system call, socket buffer and receive queue of its own.
 *
 * The frames lie in the worker's ring, in its memory: the program runs in the worker's thread and reads them there.
 */
#ifndef COLO_LIVE_H
#define COLO_LIVE_H

#include "maps.h"

#define CHECKSUM_MANGLED_ZERO 0xffff /* include/net/checksum.h, CSUM_MANGLED_0 */
/* What bpf_csum_diff takes at a time before Linux 6.13. */
#define CHECKSUM_BYTES 512
#define CHECKSUM_PIECES (COLO_LIVE_FRAME_MAX / CHECKSUM_BYTES)

/* A frame between ring and packet; its start is aligned. */
struct live_frame {
	__u8 padding[6];
	struct colo_vnet_hdr vnet;
	__u8 frame[COLO_LIVE_FRAME_MAX + CHECKSUM_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct live_frame);
} live_frames SEC(".maps");

/* Worker -> what it wants released; memory-mapped by it. The loader sets the number of workers. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct colo_live_list);
} live_lists SEC(".maps");

/*
 * Fills in what the frame's partial checksum leaves to the device: the field holds the sum of the pseudo header (net/core/dev.c,
 * skb_checksum_help). An XDP frame cannot leave that to others.
 */
static __always_inline int complete_checksum(struct live_frame *live, __u32 frame_bytes)
{
	__u32 start = live->vnet.csum_start, field = start + live->vnet.csum_offset;
	__u32 sum = 0;

	if (start >= frame_bytes || field + sizeof(__u16) > frame_bytes || frame_bytes > COLO_LIVE_FRAME_MAX)
		return -1;
	/* The sum takes whole words. */
	__builtin_memset(live->frame + frame_bytes, 0, sizeof(__u32));
	for (__u32 piece = 0; piece < CHECKSUM_PIECES; piece++) {
		__u32 at = start + piece * CHECKSUM_BYTES, bytes;

		if (at >= frame_bytes || at > COLO_LIVE_FRAME_MAX)
			break;
		bytes = (frame_bytes - at + 3) & ~3u;
		if (bytes > CHECKSUM_BYTES)
			bytes = CHECKSUM_BYTES;
		sum = bpf_csum_diff(0, 0, (__be32 *)(live->frame + at), bytes, sum);
	}
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~((sum & 0xffff) + (sum >> 16)) & 0xffff;
	if (field > COLO_LIVE_FRAME_MAX - sizeof(__u16))
		return -1;
	*(__u16 *)(live->frame + field) = sum ? sum : CHECKSUM_MANGLED_ZERO;
	return 0;
}

static __always_inline int fail(struct colo_live_list *list)
{
	list->failed++;
	return XDP_DROP;
}

static __always_inline int release_next(struct xdp_md *packet)
{
	/* A frame of the run has this length anew each time, whatever has become of the memory of those before. */
	__u32 worker = bpf_xdp_get_buff_len(packet) - COLO_LIVE_START_BYTES;
	struct colo_live_list *list = bpf_map_lookup_elem(&live_lists, &worker);
	__u32 zero = 0, index, bytes, frame_bytes, *mark;
	struct live_frame *live = bpf_map_lookup_elem(&live_frames, &zero);

	if (!list || !live)
		return XDP_DROP;
	index = list->next++;
	if (index >= COLO_LIVE_LIST_MAX)
		return fail(list);
	bytes = list->frames[index].bytes;
	if (bytes < sizeof(live->vnet) + ETH_HLEN || bytes > sizeof(live->vnet) + COLO_LIVE_FRAME_MAX)
		return fail(list);
	if (bpf_probe_read_user(&live->vnet, bytes, (void *)list->frames[index].address))
		return fail(list);
	frame_bytes = bytes - sizeof(live->vnet);
	if ((live->vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) && complete_checksum(live, frame_bytes))
		return fail(list);
	if (bpf_xdp_adjust_tail(packet, (int)(frame_bytes - worker - COLO_LIVE_START_BYTES)))
		return fail(list);
	if (bpf_xdp_store_bytes(packet, 0, live->frame, frame_bytes))
		return fail(list);
	/* By this the tap's program knows it; the bytes may be of another frame that had the memory before. */
	mark = (void *)(long)packet->data_meta;
	if ((void *)(mark + 1) > (void *)(long)packet->data)
		return fail(list);
	*mark = settings.inject_mark;
	return XDP_PASS;
}

/* At the tap: whether a frame comes from such a run. Nobody else puts metadata in front of a frame with that mark. */
static __always_inline bool is_live(struct __sk_buff *skb)
{
	__u32 *mark = (void *)(long)skb->data_meta;

	return (void *)(mark + 1) <= (void *)(long)skb->data && *mark == settings.inject_mark;
}

#endif
