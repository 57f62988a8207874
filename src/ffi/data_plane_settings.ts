/** The constants of a data plane's programs, as DataPlane takes them and as bpf/colo.h lays them out. */
import type { KernelFeatures } from "./kernel_features.ts";
import { SETTINGS, SETTINGS_BYTES, WORKERS_MAX } from "./layout.ts";

export interface DataPlaneSettings {
  /** The VM's tap. */
  tapIfindex: number;
  /** VXLAN device in external mode. */
  tunnelIfindex: number;
  /** The other agent's replication address, most significant byte first: 198.18.0.1 is 0xc6120001. */
  peerIpv4: number;
  /** 0 to 255, the same on both hosts, unique among the VMs of a tunnel device. */
  tunnelId: number;
  /** On frames that the agent releases, on mirrored frames, and on replayed input. Different, not 0. */
  injectMark: number;
  deliverMark: number;
  replayMark: number;
}

/** @throws Error with the setting that is wrong */
export function checkSettings(settings: DataPlaneSettings, workers: number): void {
  const marks = [settings.injectMark, settings.deliverMark, settings.replayMark];
  if (marks.includes(0) || new Set(marks).size !== marks.length) {
    throw new Error("The marks for injected, delivered and replayed frames have to be different and not 0.");
  }
  if (!Number.isInteger(settings.tunnelId) || settings.tunnelId < 0 || settings.tunnelId > 255) {
    throw new Error(`The tunnel id is a number from 0 to 255, not ${settings.tunnelId}.`);
  }
  if (!Number.isInteger(workers) || workers < 1 || workers > WORKERS_MAX) {
    throw new Error(`The number of workers is one from 1 to ${WORKERS_MAX}, not ${workers}.`);
  }
}

/** struct colo_settings. */
export function settingsBytes(
  settings: DataPlaneSettings,
  workers: number,
  { gso, copyInChunks }: KernelFeatures,
): Uint8Array {
  const values: Record<keyof typeof SETTINGS, number> = {
    tap_ifindex: settings.tapIfindex,
    tunnel_ifindex: settings.tunnelIfindex,
    peer_ipv4: settings.peerIpv4,
    tunnel_id: settings.tunnelId,
    inject_mark: settings.injectMark,
    deliver_mark: settings.deliverMark,
    replay_mark: settings.replayMark,
    copy_in_chunks: copyInChunks ? 1 : 0,
    gso_tcpv4: gso.SKB_GSO_TCPV4,
    gso_tcpv6: gso.SKB_GSO_TCPV6,
    gso_tcp_ecn: gso.SKB_GSO_TCP_ECN,
    gso_udp: gso.SKB_GSO_UDP,
    gso_udp_l4: gso.SKB_GSO_UDP_L4,
    workers,
  };
  const bytes = new Uint8Array(SETTINGS_BYTES);
  const view = new DataView(bytes.buffer);
  for (const [field, offset] of Object.entries(SETTINGS)) {
    view.setUint32(offset, values[field as keyof typeof SETTINGS], true);
  }
  return bytes;
}
