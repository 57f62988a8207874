/**
 * The thread of a data-path worker: it runs the loop from the first message, its setup, until Command.Quit.
 */
import { DataPathLoop } from "./loop.ts";
import type { WorkerReport, WorkerSetup } from "./shared.ts";

declare const self: Worker;

const report = (message: WorkerReport) => self.postMessage(message);

self.onmessage = (message: MessageEvent<WorkerSetup>) => {
  try {
    const loop = new DataPathLoop(message.data, report);
    report({ type: "ready" });
    loop.run();
  } catch (error) {
    report({ type: "failed", message: (error as Error).stack ?? String(error) });
  }
};
