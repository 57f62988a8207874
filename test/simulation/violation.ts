/** The rules that must hold at every step; the numbers are those of docs/failover.md. */
const INVARIANTS = {
  1: "never two hosts that let output of the VM out",
  2: "no later primary contradicts what the network has seen",
  3: "no unprotected, incomplete or stale replica is promoted",
  4: "terms grow, one holder a term",
  5: "no heartbeat is answered after a takeover may have been written",
  7: "no decision leaves a state that its own invariants forbid",
  8: "a deadline is noticed when it comes, not with the next round",
  6: "when faults stop, the pair is protected again",
} as const;

export class Violation extends Error {
  override name = "Violation";

  constructor(
    readonly invariant: keyof typeof INVARIANTS,
    readonly what: string,
  ) {
    super(`invariant ${invariant} (${INVARIANTS[invariant]}): ${what}`);
  }
}
