/**
 * The differences from QEMU's colo-compare that are meant: docs/comparison.md says why,
 * differences.test.ts shows each of them. A difference counts as explained only if the very rule that
 * made QEMU decide as it did (qemu_rules.ts) and what the sequence really says (truth.ts) are those of
 * one of these.
 */
import type { Divergence } from "../../src/compare/comparer.ts";
import type { Ask, Flaw, Release, Wait } from "./qemu_rules.ts";
import { type Content, FIN_VALUE, SYN_VALUE } from "./sequence.ts";
import type { Reason } from "./truth.ts";

/** What QEMU has done with a primary frame so far. */
export interface QemuView {
  content: Content;
  release: Release | undefined;
  wait: Wait | undefined;
  /** If QEMU waits because it has asked: reasons to hold the frame it has asked about. */
  askReasons: ReadonlySet<Reason>;
  /** Flaws for which the secondary's part of it was thrown away. */
  lost: ReadonlySet<Flaw>;
}

export type Discrepancy =
  /** QEMU has released a frame that our comparer holds, for these reasons. */
  | { kind: "qemu_released"; slot: number; content: Content; release: Release; reasons: ReadonlySet<Reason> }
  /** Our comparer has released a frame that QEMU holds. */
  | { kind: "we_released"; slot: number; qemu: QemuView; covered: boolean }
  /**
   * QEMU has asked for a checkpoint, our comparer has not (yet). `reasons`: those to hold the frame
   * concerned.
   */
  | { kind: "qemu_asked"; ask: Ask; content: Content; reasons: ReadonlySet<Reason> }
  /** Our comparer has asked for a checkpoint, QEMU has not (yet). `views`: the frames at the difference. */
  | { kind: "we_asked"; divergence: Divergence; views: QemuView[]; sentElsewhere: boolean }
  /**
   * Both have released two frames in the same step, our comparer in order of arrival, QEMU the other way
   * round.
   */
  | { kind: "order"; first: Content; second: Content; atCheckpoint: boolean };

/** `hasFragments`: datagrams of the flow have come in fragments. */
type Predicate = (d: Discrepancy, hasFragments: boolean) => boolean;

export const DIFFERENCES = {
  /** IPv6, VLAN and everything else that is not plain IPv4 passes QEMU uncompared. */
  only_ipv4_compared: (d) =>
    (d.kind === "qemu_released" && d.release.rule === "not_ipv4") ||
    (d.kind === "we_asked" && all(d.views, (view) => view.release?.rule === "not_ipv4")),

  /** SYN, FIN and RST are not compared: a lone one is released whatever the secondary has sent. */
  flags_not_compared: (d) => {
    if (d.kind === "qemu_released") {
      if (!hasFlag(d.content) || d.reasons.has("diverged")) return false;
      if (d.release.rule === "control") {
        return some(d.reasons, "missing", "different", "reset", "gap", "unfinished_before");
      }
      // A FIN behind data that was compared.
      return isCompared(d.release) && d.release.flaws.size === 0 && some(d.reasons, "missing", "different");
    }
    return (
      d.kind === "we_asked" &&
      d.divergence.class === "flags" &&
      d.views.some((view) => view.release === undefined || view.release.flaws.size === 0)
    );
  },

  /** The acknowledgement is looked at in one case only: a segment that ends within one of the secondary's. */
  acknowledgement_not_compared: (d) =>
    d.kind === "qemu_released" &&
    (d.release.rule === "control" || d.release.rule === "below_mark" || d.release.rule === "equal_segment") &&
    d.reasons.has("acknowledgement") &&
    !some(d.reasons, "missing", "different", "reset", "diverged"),

  /** ... and there it is a mismatch when it is ahead, not a reason to wait. */
  acknowledgement_ahead_is_mismatch: (d) =>
    (d.kind === "qemu_asked" && d.ask.rule === "acknowledgement_ahead" && d.reasons.has("acknowledgement")) ||
    (d.kind === "we_released" &&
      isBlockedBy(d.qemu, "acknowledgement_ahead") &&
      d.qemu.askReasons.has("acknowledgement")),

  /** ... and not the highest acknowledgement counts but the last one, compared as a plain number. */
  last_acknowledgement_counts: (d) =>
    (d.kind === "qemu_asked" &&
      d.ask.rule === "acknowledgement_ahead" &&
      !d.reasons.has("acknowledgement")) ||
    (d.kind === "we_released" &&
      isBlockedBy(d.qemu, "acknowledgement_ahead") &&
      !d.qemu.askReasons.has("acknowledgement")) ||
    (d.kind === "qemu_released" &&
      d.release.rule === "within_secondary" &&
      d.reasons.has("acknowledgement") &&
      !some(d.reasons, "missing", "different", "reset", "diverged")),

  /** The mark of a connection outlives it: a new one with lower numbers on its ports counts as compared. */
  reused_ports: (d) => isFlawed(d, "other_connection"),

  /** Bytes behind the IP packet are payload to QEMU. */
  padding_is_payload: (d) =>
    isFlawed(d, "padding") ||
    // Its bytes have been matched, its padding waits for a counterpart.
    (d.kind === "we_released" && d.qemu.wait?.why === "secondary_empty" && d.qemu.wait.frame.padding > 0),

  /** Where in the stream the bytes belong is not checked. */
  place_not_checked: (d) => isFlawed(d, "misaligned"),

  /**
   * Segments are compared and released although something before them is missing; that then counts as
   * compared.
   */
  gaps_skipped: (d) =>
    isFlawed(d, "gap") ||
    (d.kind === "qemu_released" &&
      isCompared(d.release) &&
      d.reasons.has("gap") &&
      !some(d.reasons, "missing", "different", "diverged")) ||
    (d.kind === "qemu_asked" && d.ask.rule === "different_bytes" && d.reasons.has("gap")),

  /**
   * In a connection first seen in mid-stream, what lies below its first segment does not count as
   * compared.
   */
  midstream_is_unverified: (d) =>
    d.kind === "qemu_released" &&
    (d.reasons.has("missing_below_first") || (d.reasons.has("midstream") && !d.reasons.has("missing"))) &&
    !some(d.reasons, "different", "acknowledgement", "reset", "diverged"),

  /** A frame without new bytes waits until something of the secondary is queued. */
  lone_segment_waits: (d) =>
    d.kind === "we_released" &&
    d.qemu.wait?.why === "secondary_empty" &&
    (d.qemu.wait.frame.control || d.qemu.wait.below),

  /** After a checkpoint QEMU does not know what it has covered. */
  checkpoint_forgotten: (d) => d.kind === "we_released" && d.covered,

  /** QEMU releases by sequence number, our comparer in order of arrival. */
  arrival_order: (d) =>
    (d.kind === "qemu_released" &&
      d.release.rule !== "not_ipv4" &&
      d.reasons.has("behind") &&
      !some(d.reasons, "missing", "different", "acknowledgement", "reset", "diverged", "diverged_now")) ||
    (d.kind === "order" && d.first.kind === "tcp" && sameFlow(d)),

  /** After a divergence our comparer holds all of the flow until the checkpoint, QEMU goes on. */
  diverged_flow_is_held: (d) =>
    d.kind === "qemu_released" &&
    (d.reasons.has("diverged") ||
      (d.reasons.has("diverged_now") &&
        !some(d.reasons, "missing", "different", "acknowledgement", "reset"))),

  /** A datagram ahead of its counterpart is a mismatch at once. */
  early_datagram_is_mismatch: (d, hasFragments) =>
    (d.kind === "qemu_asked" &&
      !hasFragments &&
      d.ask.rule === "no_equal_datagram" &&
      !d.ask.headerOnly &&
      !d.reasons.has("different")) ||
    (d.kind === "we_released" &&
      d.qemu.wait?.why === "asked" &&
      d.qemu.wait.ask.rule === "no_equal_datagram" &&
      !d.qemu.wait.ask.headerOnly &&
      d.qemu.wait.ask.slot > d.slot),

  /** UDP and ICMP checksums and, for other protocols, the whole IP header have to be equal. */
  headers_compared: (d) =>
    (d.kind === "qemu_asked" && d.ask.headerOnly) ||
    (d.kind === "we_released" && d.qemu.wait?.why === "asked" && d.qemu.wait.ask.headerOnly),

  /** Datagrams in another order are equal to QEMU. */
  datagram_order_ignored: (d) =>
    (d.kind === "we_asked" && d.sentElsewhere) ||
    (d.kind === "qemu_released" && d.release.rule === "datagram" && some(d.reasons, "behind", "different")),

  /** Fragments are compared one by one, each in a connection whose ports are its first bytes. */
  fragments_not_put_together: (d, hasFragments) => {
    if (!hasFragments) return false;
    if (d.kind === "qemu_released") {
      return (
        d.release.rule === "datagram" &&
        some(d.reasons, "incomplete", "missing", "different", "behind") &&
        !d.reasons.has("diverged")
      );
    }
    if (d.kind === "we_released") return d.qemu.wait !== undefined;
    if (d.kind === "qemu_asked") return d.ask.rule === "no_equal_datagram" && !d.reasons.has("different");
    return d.kind === "we_asked" && all(d.views, (view) => view.content.kind === "datagram");
  },

  /** Datagrams leave last in, first out. */
  datagrams_reversed: (d) => d.kind === "order" && d.first.kind === "datagram" && sameFlow(d),

  /** A checkpoint releases connection by connection. */
  checkpoint_by_connection: (d) => d.kind === "order" && d.atCheckpoint && !sameFlow(d),
} satisfies Record<string, Predicate>;

export type DifferenceName = keyof typeof DIFFERENCES;

export function explain(discrepancy: Discrepancy, hasFragments: boolean): DifferenceName[] {
  const names = Object.keys(DIFFERENCES) as DifferenceName[];
  return names.filter((name) => (DIFFERENCES[name] as Predicate)(discrepancy, hasFragments));
}

/** For people. */
export function describeDiscrepancy(d: Discrepancy): string {
  return JSON.stringify(d, (_, value) => {
    if (value instanceof Set) return [...value];
    return value instanceof Uint8Array ? `${value.length} bytes` : value;
  });
}

function isFlawed(d: Discrepancy, flaw: Flaw): boolean {
  switch (d.kind) {
    case "qemu_released":
      return (
        d.release.flaws.has(flaw) &&
        some(d.reasons, "missing", "different", "reset", "gap", "unfinished_before") &&
        !d.reasons.has("diverged")
      );
    case "we_released":
      return viewIsFlawed(d.qemu, flaw);
    case "qemu_asked":
      return d.ask.rule === "different_bytes" && d.ask.flaws.has(flaw);
    case "we_asked":
      return d.views.some((view) => view.release?.flaws.has(flaw) || viewIsFlawed(view, flaw));
    case "order":
      return false;
  }
}

function viewIsFlawed(view: QemuView, flaw: Flaw): boolean {
  if (view.wait?.why === "asked") {
    return view.wait.ask.rule === "different_bytes" && view.wait.ask.flaws.has(flaw);
  }
  return view.wait?.why === "secondary_empty" && view.lost.has(flaw);
}

function isBlockedBy(view: QemuView, rule: Ask["rule"]): boolean {
  return view.wait?.why === "asked" && view.wait.ask.rule === rule;
}

function isCompared(release: Release): boolean {
  return release.rule === "equal_segment" || release.rule === "within_secondary";
}

function hasFlag(content: Content): boolean {
  if (content.kind !== "tcp") return false;
  return content.reset || content.values.includes(SYN_VALUE) || content.values.includes(FIN_VALUE);
}

function sameFlow(d: { first: Content; second: Content }): boolean {
  return d.first.flow === d.second.flow;
}

function some(reasons: ReadonlySet<Reason>, ...names: Reason[]): boolean {
  return names.some((name) => reasons.has(name));
}

function all<T>(items: readonly T[], holds: (item: T) => boolean): boolean {
  return items.length > 0 && items.every(holds);
}
