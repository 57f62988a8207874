/**
 * What must not outlive this process: undone when it ends or is interrupted, also in the middle of a
 * benchmark. (What a SIGKILL leaves is removed by the next benchmark.)
 */

const pending = new Set<() => void>();
const interrupted = () => process.exit(130);

function undoAll(): void {
  for (const undo of pending) {
    try {
      undo();
    } catch {
      // The others still have to be undone.
    }
  }
  pending.clear();
}

/**
 * Calls `undo`, which must be synchronous, if the process ends first.
 *
 * @returns withdraws it, because the work has been done
 */
export function onExit(undo: () => void): () => void {
  if (pending.size === 0) {
    process.on("exit", undoAll);
    process.on("SIGINT", interrupted);
    process.on("SIGTERM", interrupted);
  }
  pending.add(undo);
  return () => {
    pending.delete(undo);
    if (pending.size > 0) return;
    process.off("exit", undoAll);
    process.off("SIGINT", interrupted);
    process.off("SIGTERM", interrupted);
  };
}
