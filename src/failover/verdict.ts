/** What has become of the peer, as far as its silence and its messages tell. */
import type { State } from "./state.ts";

type PeerVerdict = "well" | "agent_gone" | "link_cut" | "host_gone";

/**
 * The control connection closes by itself only when the peer's kernel lives. Heartbeats on the clients'
 * network while the control link is silent mean that the link is cut; silence everywhere, that the host is
 * gone or cut off, which looks the same from here.
 */
export function judgePeer(s: State, nowMs: number): PeerVerdict {
  const heard = (path: "control" | "client") => nowMs - s.heardMs[path] <= s.settings.timeoutMs;
  if (s.controlClosed) return heard("client") ? "link_cut" : "agent_gone";
  if (heard("control")) return "well";
  return heard("client") ? "link_cut" : "host_gone";
}

const SENTENCES: Record<PeerVerdict, string> = {
  well: "the peer's agent lives but does not answer for this VM",
  agent_gone: "the peer's agent is gone, its host answers",
  link_cut: "the replication link is cut, the peer lives",
  host_gone: "the peer's host is gone, or cut off from both networks",
};

/** The verdict as a sentence. */
export function peerVerdict(s: State, nowMs: number): string {
  return SENTENCES[judgePeer(s, nowMs)];
}
