/**
 * The marks that programs and sockets put on a VM's frames (skb->mark). They exist only inside this host; the
 * tunnel id keeps those of several interfaces apart. Other users of marks on the host normally use low bits.
 */
import type { DataPlaneSettings } from "./data_plane_settings.ts";

const INJECT = 0xc010_0000;
const DELIVER = 0xc020_0000;
const REPLAY = 0xc030_0000;

export function marksOf(
  tunnelId: number,
): Pick<DataPlaneSettings, "injectMark" | "deliverMark" | "replayMark"> {
  return { injectMark: INJECT + tunnelId, deliverMark: DELIVER + tunnelId, replayMark: REPLAY + tunnelId };
}
