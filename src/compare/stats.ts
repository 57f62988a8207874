/** What a comparer counts. */

/**
 * Frames since the start, but for the two that say "now". At all times primaryAdded = releasedFrames +
 * heldFrames and secondaryAdded = finishedFrames + pendingFrames.
 */
export class ComparerStats {
  primaryAdded = 0;
  /** Now. */
  heldFrames = 0;
  releasedFrames = 0;
  releasedByComparison = 0;
  releasedByCheckpoint = 0;
  /** By releaseAll(). */
  releasedAlone = 0;
  /** ARP and neighbour discovery. */
  releasedBypass = 0;
  /** Of flows that the user's rules take out of the comparison. */
  releasedPassthrough = 0;
  /** TCP: windows that were made smaller, and parts of segments that were sent before the rest. */
  clampedWindows = 0;
  parts = 0;
  /** Primary frames that went to the overflow list. */
  overflowedFrames = 0;
  secondaryAdded = 0;
  /** Now, those kept for a later epoch included. */
  pendingFrames = 0;
  finishedFrames = 0;
  /** Of an older epoch when they arrived. */
  staleFrames = 0;
  /** Of a newer epoch when they arrived, kept for the checkpoint. */
  earlyFrames = 0;
  /** Finished without having been compared: by a checkpoint, or because the flow had diverged. */
  discardedFrames = 0;
  comparedBytes = 0;
  checkpoints = 0;
  divergences = 0;
  flows = 0;
  flowsCollected = 0;
}
