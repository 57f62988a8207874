/** Ports of the guests' services (guest/README.md). */

/** The lab's own guest. */
export const GUEST_PORTS = {
  /** The pattern both ways on one connection. */
  duplex: 7001,
  /** Bulk from the guest. */
  source: 7002,
  /** Bulk to the guest. */
  sink: 7003,
  /** Random output in a chain. */
  random: 7004,
  /** Blocks of the disk. */
  disk: 7005,
  /** Datagrams that come back. */
  echo: 7006,
  /** Changes memory. */
  memory: 7007,
  /** Files on the second disk. */
  files: 7008,
  http: 80,
} as const;

/** Bytes of a block of the disk service. */
export const GUEST_BLOCK_BYTES = 4096;
