/** `[tls]`: QEMU's settings for the certificates that it shows its peer. */

import type { Config } from "../config/config.ts";
import type { StreamTls } from "../qmp/tls.ts";

/** What QEMU is to be told, undefined without `[tls]`. */
export function streamTls({ tls, peer }: Pick<Config, "tls" | "peer">): StreamTls | undefined {
  return tls === undefined ? undefined : { ...tls, peerName: peer.name };
}
