// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Loses frames at random, one program for each place, each with numbers of its own (struct link, loss.ts). */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

enum place { TO_GUEST, TO_CLIENT, TUNNEL_A, TUNNEL_B, PLACES };

/* Chances are out of 65536. */
struct link {
	__u32 random; /* state of the generator, not 0 */
	__u32 drop_chance;
	__u32 drop_again_chance; /* right after a loss: they come in bursts */
	__u32 dropped_last;
	__u64 passed;
	__u64 dropped;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, PLACES);
	__type(key, __u32);
	__type(value, struct link);
} links SEC(".maps");

static __always_inline int lose(__u32 place)
{
	struct link *link = bpf_map_lookup_elem(&links, &place);
	__u32 random, chance;

	if (!link)
		return TC_ACT_SHOT;
	/* Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8(14), 2003: triple 13, 17, 5. */
	random = link->random;
	random ^= random << 13;
	random ^= random >> 17;
	random ^= random << 5;
	link->random = random;
	chance = link->dropped_last ? link->drop_again_chance : link->drop_chance;
	link->dropped_last = (random >> 16) < chance;
	if (link->dropped_last) {
		link->dropped++;
		return TC_ACT_SHOT;
	}
	link->passed++;
	return TC_ACT_OK;
}

SEC("tc")
int to_guest(struct __sk_buff *skb)
{
	return lose(TO_GUEST);
}

SEC("tc")
int to_client(struct __sk_buff *skb)
{
	return lose(TO_CLIENT);
}

SEC("tc")
int tunnel_a(struct __sk_buff *skb)
{
	return lose(TUNNEL_A);
}

SEC("tc")
int tunnel_b(struct __sk_buff *skb)
{
	return lose(TUNNEL_B);
}

char _license[] SEC("license") = "Dual BSD/GPL";
