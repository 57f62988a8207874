/** The thread of a further worker (release.ts): does its share whenever it is told to. */
import { ReleaseLoop, type ReleaseThreadSetup, SHARED, Task } from "./release_loop.ts";

declare const self: Worker;

self.onmessage = ({ data: { loop: setup, buffer } }: MessageEvent<ReleaseThreadSetup>) => {
  const shared = new Int32Array(buffer);
  try {
    const loop = new ReleaseLoop(setup);
    self.postMessage(undefined);
    for (let task = Task.Done; task !== Task.Quit; ) {
      Atomics.wait(shared, SHARED.task, Task.Done);
      task = Atomics.load(shared, SHARED.task);
      if (task === Task.CompareAndRelease) loop.compareAndRelease();
      else if (task === Task.Release) loop.release();
      else if (task === Task.Forget) loop.forget();
      else loop.close();
      Atomics.store(shared, SHARED.joinedFrames, loop.joinedFrames);
      Atomics.store(shared, SHARED.failedFrames, loop.failedFrames);
      Atomics.store(shared, SHARED.task, Task.Done);
    }
  } catch (error) {
    Atomics.store(shared, SHARED.failed, 1);
    Atomics.store(shared, SHARED.task, Task.Done);
    self.postMessage((error as Error).message);
  }
};
