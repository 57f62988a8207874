/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Copies a frame into a packet ring in a form that an AF_PACKET socket sends without another copy: the bytes
 * as on the wire, and before them a virtio_net_hdr with the skb's checksum and segmentation offloads.
 */
#ifndef COLO_RECORD_H
#define COLO_RECORD_H

#include "doorbell.h"
#include "worker.h"

#define ADDRESSES_BYTES (2 * ETH_ALEN) /* a VLAN tag comes behind them */

#define COPY_CHUNK_BYTES 4096
#define COPY_CHUNKS_MAX 128 /* 512 KiB, the largest GSO frame (include/linux/netdevice.h, GSO_MAX_SIZE) */

/* include/uapi/linux/virtio_net.h */
#define VIRTIO_NET_HDR_GSO_TCPV4 1
#define VIRTIO_NET_HDR_GSO_UDP 3
#define VIRTIO_NET_HDR_GSO_TCPV6 4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#define VIRTIO_NET_HDR_GSO_ECN 0x80

#define TCP_HEADER_WORDS_OFFSET 12
#define UDP_HEADER_BYTES 8

enum put_result {
	PUT_DONE = 0,
	PUT_RING_FULL,
	PUT_FAILED,
};

/* Where the transport payload of a GSO frame begins; `transport` is the offset of the transport header. */
static __always_inline __u32 gso_header_bytes(struct __sk_buff *skb, __u8 gso_type, __u32 transport)
{
	__u8 words;

	if (gso_type == VIRTIO_NET_HDR_GSO_UDP || gso_type == VIRTIO_NET_HDR_GSO_UDP_L4)
		return transport + UDP_HEADER_BYTES;
	if (bpf_skb_load_bytes(skb, transport + TCP_HEADER_WORDS_OFFSET, &words, sizeof(words)))
		return transport;
	return transport + (words >> 4) * 4;
}

/*
 * Fills in what the frame itself says; the offloads as virtio_net_hdr_from_skb does
 * (include/linux/virtio_net.h). Negative if a virtio_net_hdr cannot express them.
 */
static __noinline int describe_frame(struct __sk_buff *skb, struct colo_record *record, __u32 tag_bytes)
{
	struct sk_buff *kernel_skb = bpf_cast_to_kern_ctx(skb);
	struct colo_vnet_hdr *vnet;
	struct skb_shared_info *shared;
	__u32 gso_type, transport = 0;

	if (!record)
		return -1;
	record->time_ns = bpf_ktime_get_boot_ns();
	record->frame_bytes = skb->len + tag_bytes;
	vnet = &record->vnet;

	if (BPF_CORE_READ_BITFIELD(kernel_skb, ip_summed) == CHECKSUM_PARTIAL) {
		/* csum_start counts from head, a virtio_net_hdr from the frame's first byte. */
		transport =
			kernel_skb->csum_start - (__u32)((__u64)kernel_skb->data - (__u64)kernel_skb->head);
		vnet->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
		vnet->csum_start = transport + tag_bytes;
		vnet->csum_offset = kernel_skb->csum_offset;
	}
	if (!skb->gso_size)
		return 0;

	shared = bpf_rdonly_cast(kernel_skb->head + kernel_skb->end,
				 bpf_core_type_id_kernel(struct skb_shared_info));
	gso_type = shared->gso_type;
	if (gso_type & settings.gso_tcpv4)
		vnet->gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
	else if (gso_type & settings.gso_tcpv6)
		vnet->gso_type = VIRTIO_NET_HDR_GSO_TCPV6;
	else if (gso_type & settings.gso_udp_l4)
		vnet->gso_type = VIRTIO_NET_HDR_GSO_UDP_L4;
	else if (gso_type & settings.gso_udp)
		vnet->gso_type = VIRTIO_NET_HDR_GSO_UDP;
	else
		return -1;
	vnet->gso_size = skb->gso_size;
	if (vnet->flags)
		vnet->hdr_len = gso_header_bytes(skb, vnet->gso_type, transport) + tag_bytes;
	if (gso_type & settings.gso_tcp_ecn)
		vnet->gso_type |= VIRTIO_NET_HDR_GSO_ECN;
	return 0;
}

/* Replaces bpf_dynptr_copy on kernels without it. */
static __always_inline long copy_in_chunks(struct bpf_dynptr *slot, __u32 to, struct __sk_buff *skb,
					   __u32 from, __u32 bytes)
{
	for (int i = 0; i < COPY_CHUNKS_MAX && bytes >= COPY_CHUNK_BYTES; i++) {
		void *chunk = bpf_dynptr_data(slot, to, COPY_CHUNK_BYTES);

		if (!chunk || bpf_skb_load_bytes(skb, from, chunk, COPY_CHUNK_BYTES))
			return -1;
		to += COPY_CHUNK_BYTES;
		from += COPY_CHUNK_BYTES;
		bytes -= COPY_CHUNK_BYTES;
	}
#define COPY_REST(size)                                                 \
	if (bytes & (size)) {                                           \
		void *rest = bpf_dynptr_data(slot, to, size);           \
		if (!rest || bpf_skb_load_bytes(skb, from, rest, size)) \
			return -1;                                      \
		to += (size);                                           \
		from += (size);                                         \
	}
	COPY_REST(2048)
	COPY_REST(1024)
	COPY_REST(512)
	COPY_REST(256)
	COPY_REST(128)
	COPY_REST(64)
	COPY_REST(32)
	COPY_REST(16)
	COPY_REST(8)
	COPY_REST(4)
	COPY_REST(2)
	COPY_REST(1)
#undef COPY_REST
	return bytes >= COPY_CHUNK_BYTES ? -1 : 0;
}

static __always_inline long copy_frame(struct bpf_dynptr *slot, __u32 to, struct __sk_buff *skb, __u32 from,
				       __u32 bytes)
{
	struct bpf_dynptr frame;

	if (settings.copy_in_chunks)
		return copy_in_chunks(slot, to, skb, from, bytes);
	if (bpf_dynptr_from_skb(skb, 0, &frame))
		return -1;
	return bpf_dynptr_copy(slot, to, &frame, from, bytes);
}

/* Puts the frame, its VLAN tag back in place, behind a colo_record. `epoch` is 0 but for secondary frames. */
static __always_inline enum put_result put_record(void *ring, struct __sk_buff *skb, enum colo_source source,
						  __u32 epoch, __u32 hash)
{
	__u32 tag_bytes = skb->vlan_present ? VLAN_TAG_BYTES : 0;
	struct colo_record record = { .source = source, .epoch = epoch, .hash = hash };
	struct bpf_dynptr slot;
	long error;

	if (skb->len < ETH_HLEN || describe_frame(skb, &record, tag_bytes))
		return PUT_FAILED;
	if (bpf_ringbuf_reserve_dynptr(ring, COLO_RECORD_HEADER_BYTES + record.frame_bytes, 0, &slot)) {
		bpf_ringbuf_discard_dynptr(&slot, BPF_RB_NO_WAKEUP);
		return PUT_RING_FULL;
	}
	error = bpf_dynptr_write(&slot, 0, &record, sizeof(record), 0);
	if (!error && tag_bytes) {
		struct {
			__u8 addresses[ADDRESSES_BYTES];
			__u16 protocol_be;
			__u16 tci_be;
		} start;

		error = bpf_skb_load_bytes(skb, 0, start.addresses, sizeof(start.addresses));
		start.protocol_be = skb->vlan_proto;
		start.tci_be = bpf_htons(skb->vlan_tci);
		if (!error)
			error = bpf_dynptr_write(&slot, COLO_RECORD_HEADER_BYTES, &start, sizeof(start), 0);
		if (!error)
			error = copy_frame(&slot, COLO_RECORD_HEADER_BYTES + sizeof(start), skb,
					   ADDRESSES_BYTES, skb->len - ADDRESSES_BYTES);
	} else if (!error) {
		error = copy_frame(&slot, COLO_RECORD_HEADER_BYTES, skb, 0, skb->len);
	}
	if (error) {
		bpf_ringbuf_discard_dynptr(&slot, BPF_RB_NO_WAKEUP);
		return PUT_FAILED;
	}
	bpf_ringbuf_submit_dynptr(&slot, BPF_RB_NO_WAKEUP);
	return PUT_DONE;
}

/* Puts a VM's frame into the ring of its worker, and wakes that. `others`: the rings of the other VM. */
static __always_inline enum put_result put_for_worker(void *rings, void *others, struct __sk_buff *skb,
						      struct colo_state *state, enum colo_source source,
						      __u32 epoch)
{
	__u32 hash = flow_hash(skb);
	__u32 worker = worker_of(hash);
	void *ring = bpf_map_lookup_elem(rings, &worker);
	enum put_result result;

	if (!ring)
		return PUT_FAILED;
	result = put_record(ring, skb, source, epoch, hash);
	if (result == PUT_DONE)
		ring_doorbell(state, worker, others, skb->len);
	return result;
}

#endif
