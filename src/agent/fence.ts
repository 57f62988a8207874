/**
 * Fencing: a command of the administrator's that turns the lost peer off (or cuts it from its network) before
 * its VM runs here. The kernel's lease already keeps a lost primary silent; fencing is for those who want to
 * see it off.
 */
import { spawn } from "node:child_process";
import { accessSync, constants } from "node:fs";
import type { FenceConfig } from "../config/safeguards.ts";

/** What the command finds in its environment: COLO_AGENT, COLO_PEER, COLO_VM, COLO_TERM. */
interface FenceFacts {
  /** This agent. */
  agent: string;
  /** The one to be turned off. */
  peer: string;
  vm: string;
  /** Term that the takeover will have. */
  term: number;
}

interface FenceResult {
  ok: boolean;
  /** What it wrote to standard output and error, the end of it if that is long. */
  output: string;
  /** Why it is not ok. */
  reason?: string;
}

export interface Fence {
  /**
   * Whether a takeover waits for the command's success ("required"), tries it ("try"), or has none ("none").
   */
  readonly policy: "none" | "try" | "required";
  /**
   * Turns the peer off. Resolves when that has ended, at the latest after its timeout or `signal`. Never
   * rejects.
   */
  run(facts: FenceFacts, signal?: AbortSignal): Promise<FenceResult>;
}

/** No fence command is configured. */
class NoFence implements Fence {
  readonly policy = "none";

  async run(): Promise<FenceResult> {
    return { ok: false, output: "", reason: "no fence command is configured" };
  }
}

/** Throws an Error when the configured command cannot be run, so that it is known before it is needed. */
export function openFence(config: FenceConfig | undefined): Fence {
  if (config === undefined) return new NoFence();
  const fence = new CommandFence(config);
  fence.check();
  return fence;
}

const OUTPUT_CHARACTERS_MAX = 16_384;
/** Time for output that is still on its way when the command has ended. */
const OUTPUT_GRACE_MS = 200;

export class CommandFence implements Fence {
  readonly policy: "try" | "required";

  constructor(private readonly config: FenceConfig) {
    this.policy = config.required ? "required" : "try";
  }

  /** Throws an Error when the command cannot be run. */
  check(): void {
    const [program = ""] = this.config.command;
    try {
      accessSync(program, constants.X_OK);
    } catch (error) {
      throw new Error(`fence.command: ${program} cannot be run: ${(error as Error).message}`, {
        cause: error,
      });
    }
  }

  /** Runs the command in a process group of its own, to its end, its timeout or `signal`. Never throws. */
  async run(facts: FenceFacts, signal?: AbortSignal): Promise<FenceResult> {
    if (signal?.aborted) return { ok: false, output: "", reason: "not run: no longer wanted" };
    const { timeout_ms: timeoutMs } = this.config;
    const [program = "", ...args] = this.config.command;
    let output = "";
    return await new Promise((resolve) => {
      const child = spawn(program, args, {
        detached: true, // setsid: its pid is the group's
        stdio: ["ignore", "pipe", "pipe"],
        env: {
          ...process.env,
          COLO_AGENT: facts.agent,
          COLO_PEER: facts.peer,
          COLO_VM: facts.vm,
          COLO_TERM: String(facts.term),
        },
      });
      let reason: string | undefined;
      let grace: Timer | undefined;
      const collect = (chunk: Buffer) => {
        output = (output + chunk.toString("utf8")).slice(-OUTPUT_CHARACTERS_MAX);
      };
      child.stdout.on("data", collect);
      child.stderr.on("data", collect);
      const killGroup = () => {
        if (child.pid === undefined) return;
        try {
          process.kill(-child.pid, "SIGKILL");
        } catch {
          // nothing of it is left
        }
      };
      const stop = (why: string) => {
        reason ??= why;
        killGroup();
      };
      const timer = setTimeout(() => stop(`no end within ${timeoutMs} ms; killed`), timeoutMs);
      const onAbort = () => stop("no longer wanted; killed");
      signal?.addEventListener("abort", onAbort, { once: true });
      const finish = () => {
        clearTimeout(timer);
        clearTimeout(grace);
        signal?.removeEventListener("abort", onAbort);
        resolve(reason === undefined ? { ok: true, output } : { ok: false, output, reason });
      };
      child.once("error", (error) => {
        reason ??= `${program} cannot be run: ${error.message}`;
        finish();
      });
      child.once("exit", (status, killedBy) => {
        if (status !== 0) reason ??= status === null ? `ended by ${killedBy}` : `ended with status ${status}`;
        // What it has left in the background may keep its output open for ever.
        grace = setTimeout(() => {
          killGroup();
          finish();
        }, OUTPUT_GRACE_MS);
      });
      child.once("close", finish);
    });
  }
}
