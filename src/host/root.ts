/** Throws unless this process is root. `purpose` completes the sentence. */
import { Problem } from "../errors/problem.ts";
export function requireRoot(purpose: string): void {
  if (process.getuid?.() !== 0)
    throw new Problem(`only root can ${purpose}, because it loads BPF programs and handles taps`, "try sudo");
}
