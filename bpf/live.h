/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Releases many small frames at once. The worker runs an XDP program on "live frames"
 * (BPF_F_TEST_XDP_LIVE_FRAMES, net/bpf/test_run.c); each frame that the program passes arrives at the tap.
 * This costs half of what a packet socket costs per frame: there is no system call, socket buffer or receive
 * queue entry for each of them.
 *
 * The frames lie in the worker's ring, in its memory. The program runs in the worker's thread and reads them
 * there.
 */
#ifndef COLO_LIVE_H
#define COLO_LIVE_H

#include "maps.h"
#include "state.h"

#define CHECKSUM_MANGLED_ZERO 0xffff /* include/net/checksum.h, CSUM_MANGLED_0 */
#define CHECKSUM_PIECES (COLO_LIVE_FRAME_MAX / CHECKSUM_BYTES)

/*
 * Completes a partial checksum, whose field holds the sum of the pseudo header (net/core/dev.c,
 * skb_checksum_help). An XDP frame has no way to leave that to the device.
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
	/*
	 * Every frame of a run starts with this length again, although the kernel recycles the pages of
	 * earlier ones.
	 */
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
	/* The tap's program recognises the frame by it. The page may still hold an earlier frame's mark. */
	mark = (void *)(long)packet->data_meta;
	if ((void *)(mark + 1) > (void *)(long)packet->data)
		return fail(list);
	*mark = settings.inject_mark;
	return XDP_PASS;
}

/* At the tap: whether a frame comes from such a run. No other program writes that mark as metadata. */
static __always_inline bool is_live(struct __sk_buff *skb)
{
	__u32 *mark = (void *)(long)skb->data_meta;

	return (void *)(mark + 1) <= (void *)(long)skb->data && *mark == settings.inject_mark;
}

#endif
