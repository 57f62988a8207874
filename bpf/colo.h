/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the BPF programs and user space: every structure that crosses the border, and nothing
 * else.
 *
 * src/ffi/layout.ts holds the same offsets for TypeScript; test/layout.test.ts compares them with the BTF of
 * the compiled object. All integers are in host byte order unless the name ends in _be.
 */
#ifndef COLO_H
#define COLO_H

/* What the VM behind the tap is allowed to do. Written by the agent, read by every program. */
enum colo_role {
	COLO_ROLE_BLOCKED = 0,	 /* nothing passes in either direction: the state before anything is known */
	COLO_ROLE_SOLO = 1,	 /* the VM runs alone: frames pass in the kernel while the lease holds */
	COLO_ROLE_PRIMARY = 2,	 /* output is held in a ring, input is mirrored to the secondary */
	COLO_ROLE_SECONDARY = 3, /* output goes to the primary's comparer, input comes from its mirror */
	COLO_ROLE_SUCCESSOR = 4, /* a secondary during a hand-over: held without a lease, alone with one */
};

/* The records for which a worker wants its doorbell rung. */
enum colo_sleep {
	COLO_SLEEP_NONE = 0,   /* it is awake */
	COLO_SLEEP_ANY = 1,    /* for its next record */
	COLO_SLEEP_PAIRED = 2, /* the same, but not for a bulk frame while the other VM's ring is empty */
};

#define COLO_WORKERS_MAX 16 /* a power of two */

/*
 * Frames of at least this length belong to a long transfer. The worker cannot release them before the other
 * VM sends the same, so a wake-up for the first VM's frame would be wasted. For shorter frames the wake-up
 * hides the worker's latency: it is awake when the second VM's frame arrives.
 */
#define COLO_BULK_BYTES 16384

/* One element, index 0, memory-mapped by the agent (BPF_F_MMAPABLE). */
struct colo_state {
	__u64 lease_deadline_ns; /* CLOCK_BOOTTIME; frames leave to the network only before it */
	enum colo_role role;	 /* 32 bits, as every enum here */
	__u32 epoch;		 /* the secondary tags what it forwards with it; 16 bits travel */
	__u32 rewrite_epoch;	 /* connections learned in another epoch have offset 0 */
	__u32 divert_input;	 /* 1: input of the primary goes to the input ring instead of the VM */
	__u32 connections_kept;	 /* 0: the map of connections is empty, so nobody needs to look there */
	/* By worker; the program that rings its doorbell clears it. */
	enum colo_sleep consumer_sleeping[COLO_WORKERS_MAX];
};

/* Fixed at load time. */
struct colo_settings {
	__u32 tap_ifindex;
	__u32 tunnel_ifindex; /* VXLAN device in external (collect metadata) mode */
	__u32 peer_ipv4;      /* the other agent's replication address, host byte order */
	__u32 tunnel_id;      /* top 8 bits of the VNI; the low 16 carry the epoch */
	__u32 inject_mark;    /* on frames that the agent releases */
	__u32 deliver_mark;   /* on mirrored frames that may reach the secondary */
	__u32 replay_mark;    /* on diverted input that the agent puts back */
	__u32 copy_in_chunks; /* 1: the kernel has no bpf_dynptr_copy (Linux before 6.15) */
	__u32 gso_tcpv4;      /* the running kernel's SKB_GSO_* bits, from its BTF */
	__u32 gso_tcpv6;
	__u32 gso_tcp_ecn;
	__u32 gso_udp;
	__u32 gso_udp_l4;
	__u32 workers; /* that the VM's output is shared among, 1 to COLO_WORKERS_MAX */
};

enum colo_source {
	COLO_SOURCE_PRIMARY = 1,   /* sent by the primary VM, held */
	COLO_SOURCE_SECONDARY = 2, /* sent by the secondary VM, sequence numbers already the primary's */
	COLO_SOURCE_INPUT = 3,	   /* diverted on its way to the primary VM */
};

#define VIRTIO_NET_HDR_F_NEEDS_CSUM 1

/* include/uapi/linux/virtio_net.h, the 10-byte form that PACKET_VNET_HDR takes. */
struct colo_vnet_hdr {
	__u8 flags;    /* VIRTIO_NET_HDR_F_NEEDS_CSUM or nothing */
	__u8 gso_type; /* 0 none, 1 TCPv4, 4 TCPv6, 5 UDP_L4; 0x80 with ECN */
	__u16 hdr_len;
	__u16 gso_size;
	__u16 csum_start;
	__u16 csum_offset;
};

#define COLO_RECORD_HEADER_BYTES 64
#define COLO_RECORD_SEND_OFFSET 54 /* &record[54] is a send buffer: virtio_net_hdr, then the frame */

/*
 * Header of a record in the packet rings; the frame follows at once. A VLAN tag that the kernel keeps in the
 * skb's metadata is written back into the frame, so that the bytes are those on the wire.
 */
struct colo_record {
	__u64 time_ns;	   /* CLOCK_BOOTTIME when the program saw the frame */
	__u32 frame_bytes; /* length of the frame behind this header */
	__u32 epoch;	   /* the secondary's epoch tag (16 bits); 0 for other sources */
	enum colo_source source;
	__u32 hash; /* of the flow (worker.h); the worker follows from it */
	__u8 reserved[30];
	struct colo_vnet_hdr vnet;
};

/* A run of live frames (live.h): longest frame in bytes, most frames in a list. */
#define COLO_LIVE_FRAME_MAX 1536
#define COLO_LIVE_LIST_MAX 256
/* Bytes of the frame that starts a run, plus one for each worker before this one. */
#define COLO_LIVE_START_BYTES 64

struct colo_live_frame {
	__u64 address; /* of a virtio_net_hdr and the frame behind it, in the memory of the run's thread */
	__u64 bytes;   /* of both together */
};

/* What a worker wants released, in order. */
struct colo_live_list {
	__u32 next;   /* how far the program has come; 0 before a run */
	__u32 failed; /* how many it could not read or did not understand */
	struct colo_live_frame frames[COLO_LIVE_LIST_MAX];
};

/* Per-CPU counters, index = enum value. Frames unless the name says otherwise. */
enum colo_counter {
	COLO_COUNT_HELD = 0,	       /* primary frames put into the ring */
	COLO_COUNT_HOLD_RING_FULL,     /* primary frames dropped because the ring was full */
	COLO_COUNT_HOLD_FAILED,	       /* primary frames dropped because they could not be copied */
	COLO_COUNT_PASSED_DIRECT,      /* address resolution of the primary, released in the kernel */
	COLO_COUNT_PASSED_SOLO,	       /* frames of a VM that runs alone */
	COLO_COUNT_PASSED_RELEASED,    /* frames released by the comparer */
	COLO_COUNT_DROPPED_LEASE,      /* frames dropped because the lease had run out */
	COLO_COUNT_DROPPED_BLOCKED,    /* VM output dropped in role BLOCKED */
	COLO_COUNT_MIRRORED,	       /* input frames cloned to the secondary and passed to the VM */
	COLO_COUNT_MIRROR_FAILED,      /* input frames passed to the VM whose clone failed */
	COLO_COUNT_DIVERTED,	       /* input frames put into the input ring */
	COLO_COUNT_DIVERT_FAILED,      /* input frames dropped because the input ring was full */
	COLO_COUNT_INPUT_SOLO,	       /* input frames of a VM that runs alone */
	COLO_COUNT_INPUT_BLOCKED,      /* input frames dropped in role BLOCKED */
	COLO_COUNT_FORWARDED,	       /* secondary frames sent to the primary's comparer */
	COLO_COUNT_FORWARD_FAILED,     /* secondary frames that could not be sent */
	COLO_COUNT_FORWARD_SUPPRESSED, /* ARP and neighbour discovery of the secondary */
	COLO_COUNT_COLLECTED,	       /* secondary frames put into the ring on the primary */
	COLO_COUNT_COLLECT_RING_FULL,  /* secondary frames dropped because the ring was full */
	COLO_COUNT_COLLECT_FAILED,     /* secondary frames dropped because they could not be copied */
	COLO_COUNT_DELIVERED,	       /* mirrored frames handed to the secondary's tap */
	COLO_COUNT_DELIVER_REJECTED,   /* tunnel frames of another VM, role or without metadata */
	COLO_COUNT_FOREIGN_DROPPED,    /* frames of the secondary's own bridge, kept from the VM */
	COLO_COUNT_CONNECTION_FULL,    /* connections not learned because the map was full */
	COLO_COUNT_REPLAYED,	       /* diverted frames put back */
	COLO_COUNTERS
};

/* A TCP connection of the secondary VM whose numbers differ from what the client knows. */
struct colo_connection_key {
	__u8 client_address[16]; /* network order; IPv4 in the first four bytes, the rest zero */
	__u8 guest_address[16];
	__u16 client_port_be;
	__u16 guest_port_be;
	__u32 ip_version; /* 4 or 6 */
};

enum colo_connection_flag {
	COLO_CONNECTION_KNOWN = 1,	/* offsets are set */
	COLO_CONNECTION_TIMESTAMPS = 2, /* the secondary's SYN carried a timestamp */
	COLO_CONNECTION_GUEST_FIN = 4,	/* the guest has sent its last byte */
	/*
	 * From the primary, which once took over and has these offsets itself: valid in every epoch, but of
	 * use only when this VM takes over in its turn, for until then the primary applies them.
	 */
	COLO_CONNECTION_INHERITED = 8,
	COLO_CONNECTION_CLIENT_FIN = 16, /* the client has sent its last byte */
	COLO_CONNECTION_RESET = 32,	 /* a RST was seen, and nothing else of the guest's since */
};

struct colo_connection {
	__u32 epoch;		/* valid while it equals colo_state.rewrite_epoch, unless inherited */
	__u32 isn;		/* sequence number of the secondary's SYN */
	__u32 syn_tsval;	/* timestamp value on the secondary's SYN */
	__u32 sequence_offset;	/* secondary's minus primary's sequence number */
	__u32 timestamp_offset; /* secondary's minus primary's timestamp */
	enum colo_connection_flag flags;
	__u64 last_seen_ns; /* CLOCK_BOOTTIME */
};

#endif
