/** Throws unless this process is root. `purpose` completes the sentence. */
export function requireRoot(purpose: string): void {
  if (process.getuid?.() !== 0)
    throw new Error(`only root can ${purpose}: it loads BPF programs and handles taps; try sudo`);
}
