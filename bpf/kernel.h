/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few kernel structures and functions that the programs look at; offsets come from the running kernel's
 * BTF (CO-RE), so no generated vmlinux.h is needed to build.
 */
#ifndef COLO_KERNEL_H
#define COLO_KERNEL_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <stdbool.h>

#include "colo.h"

/* include/linux/skbuff.h */
#define CHECKSUM_PARTIAL 3

struct sk_buff {
	__u8 ip_summed : 2;
	__u16 csum_start;
	__u16 csum_offset;
	unsigned int end;
	unsigned char *head;
	unsigned char *data;
} __attribute__((preserve_access_index));

struct skb_shared_info {
	unsigned short gso_size;
	unsigned int gso_type;
} __attribute__((preserve_access_index));

/* kernel/bpf/helpers.c, since Linux 6.2 */
extern void *bpf_cast_to_kern_ctx(void *context) __ksym;
extern void *bpf_rdonly_cast(void *object, __u32 btf_id) __ksym;

/* net/core/filter.c since Linux 6.4, kernel/bpf/helpers.c since Linux 6.15; see settings.copy_in_chunks */
extern int bpf_dynptr_from_skb(struct __sk_buff *skb, __u64 flags, struct bpf_dynptr *frame) __ksym __weak;
extern int bpf_dynptr_copy(struct bpf_dynptr *to, __u32 to_offset, struct bpf_dynptr *from, __u32 from_offset,
			   __u32 bytes) __ksym __weak;

#endif
