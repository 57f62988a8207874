/**
 * The offsets and numbers of bpf/colo.h. test/layout.test.ts compares them with the BTF of the compiled
 * object.
 */

/** enum colo_role: what the VM behind the tap is allowed to do. */
export const ROLE = { BLOCKED: 0, SOLO: 1, PRIMARY: 2, SECONDARY: 3, SUCCESSOR: 4 } as const;
export type Role = (typeof ROLE)[keyof typeof ROLE];

/** enum colo_source: who sent a recorded frame. */
export const SOURCE = { PRIMARY: 1, SECONDARY: 2, INPUT: 3 } as const;

/** enum colo_sleep: for what a worker wants its doorbell rung. */
export const SLEEP = { NONE: 0, ANY: 1, PAIRED: 2 } as const;
export type Sleep = (typeof SLEEP)[keyof typeof SLEEP];

/** enum colo_connection_flag. */
export const CONNECTION_FLAG = {
  KNOWN: 1,
  TIMESTAMPS: 2,
  GUEST_FIN: 4,
  INHERITED: 8,
  CLIENT_FIN: 16,
  RESET: 32,
} as const;

/** Offsets in struct colo_state. */
export const STATE = {
  lease_deadline_ns: 0,
  role: 8,
  epoch: 12,
  rewrite_epoch: 16,
  divert_input: 20,
  connections_kept: 24,
  consumer_sleeping: 28,
} as const;
export const STATE_BYTES = 96;
/** Workers that a VM's output can be shared among. */
export const WORKERS_MAX = 16;

/** Frames of at least this length do not wake a worker in SLEEP.PAIRED while the other VM's ring is empty. */
export const BULK_BYTES = 16384;

/** Offsets in struct colo_settings; every field is a 32-bit number. */
export const SETTINGS = {
  tap_ifindex: 0,
  tunnel_ifindex: 4,
  peer_ipv4: 8,
  tunnel_id: 12,
  inject_mark: 16,
  deliver_mark: 20,
  replay_mark: 24,
  copy_in_chunks: 28,
  gso_tcpv4: 32,
  gso_tcpv6: 36,
  gso_tcp_ecn: 40,
  gso_udp: 44,
  gso_udp_l4: 48,
  workers: 52,
} as const;
export const SETTINGS_BYTES = 56;

/** Offsets in struct colo_vnet_hdr. */
export const VNET = {
  flags: 0,
  gso_type: 1,
  hdr_len: 2,
  gso_size: 4,
  csum_start: 6,
  csum_offset: 8,
} as const;
export const VNET_BYTES = 10;
/** In colo_vnet_hdr.flags: VIRTIO_NET_HDR_F_NEEDS_CSUM. */
export const VNET_NEEDS_CHECKSUM = 1;
/** colo_vnet_hdr.gso_type: VIRTIO_NET_HDR_GSO_*; with ECN in addition. */
export const VNET_GSO = { NONE: 0, TCPV4: 1, UDP: 3, TCPV6: 4, UDP_L4: 5, ECN: 0x80 } as const;

/** Offsets in struct colo_record. */
export const RECORD = {
  time_ns: 0,
  frame_bytes: 8,
  epoch: 12,
  source: 16,
  hash: 20,
  reserved: 24,
  vnet: 54,
} as const;
/** The frame begins here. */
export const RECORD_HEADER_BYTES = 64;
/** From here on a record is what PacketSocket.queue() takes: virtio_net_hdr, then the frame. */
export const RECORD_SEND_OFFSET = 54;

/** Offsets in struct colo_connection_key. */
export const CONNECTION_KEY = {
  client_address: 0,
  guest_address: 16,
  client_port_be: 32,
  guest_port_be: 34,
  ip_version: 36,
} as const;
export const CONNECTION_KEY_BYTES = 40;

/** Offsets in struct colo_connection. */
export const CONNECTION = {
  epoch: 0,
  isn: 4,
  syn_tsval: 8,
  sequence_offset: 12,
  timestamp_offset: 16,
  flags: 20,
  last_seen_ns: 24,
} as const;
export const CONNECTION_BYTES = 32;

/**
 * Of a run of live frames (bpf/live.h): length of a frame, frames in a list, length of the first worker's
 * start frame.
 */
export const LIVE_FRAME_BYTES_MAX = 1536;
export const LIVE_LIST_MAX = 256;
export const LIVE_START_BYTES = 64;

/** Offsets in struct colo_live_frame. */
export const LIVE_FRAME = { address: 0, bytes: 8 } as const;
export const LIVE_FRAME_ENTRY_BYTES = 16;

/** Offsets in struct colo_live_list. */
export const LIVE_LIST = { next: 0, failed: 4, frames: 8 } as const;
export const LIVE_LIST_BYTES = LIVE_LIST.frames + LIVE_LIST_MAX * LIVE_FRAME_ENTRY_BYTES;

/**
 * enum colo_counter in order, without COLO_COUNT_ and in lower case; what each counts is said in bpf/colo.h.
 */
export const COUNTER_NAMES = [
  "held",
  "hold_ring_full",
  "hold_failed",
  "passed_direct",
  "passed_solo",
  "passed_released",
  "dropped_lease",
  "dropped_blocked",
  "mirrored",
  "mirror_failed",
  "diverted",
  "divert_failed",
  "input_solo",
  "input_blocked",
  "forwarded",
  "forward_failed",
  "forward_suppressed",
  "collected",
  "collect_ring_full",
  "collect_failed",
  "delivered",
  "deliver_rejected",
  "foreign_dropped",
  "connection_full",
  "replayed",
] as const;
export type CounterName = (typeof COUNTER_NAMES)[number];
