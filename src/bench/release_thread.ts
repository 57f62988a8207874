/** The thread of a further worker (release.ts): each task is a step of its loop. */
import { DrivenLoop, type ReleaseThreadSetup, SHARED, Task } from "./driven_loop.ts";

declare const self: Worker;

self.onmessage = ({ data: { loop: setup, tasks } }: MessageEvent<ReleaseThreadSetup>) => {
  const shared = new Int32Array(tasks);
  try {
    const loop = new DrivenLoop(setup);
    self.postMessage(undefined);
    for (let task = Task.Done; task !== Task.Quit; ) {
      Atomics.wait(shared, SHARED.task, Task.Done);
      task = Atomics.load(shared, SHARED.task);
      loop.take(task);
      Atomics.store(shared, SHARED.task, Task.Done);
    }
  } catch (error) {
    Atomics.store(shared, SHARED.failed, 1);
    Atomics.store(shared, SHARED.task, Task.Done);
    self.postMessage((error as Error).message);
  }
};
