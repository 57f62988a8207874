/** Sleeps without limit and says after each waking who has cleared the flag. See poll.test.ts. */
import { SLEEP } from "../../src/ffi/layout.ts";
import { Waiter } from "../../src/ffi/poll.ts";
import { StateView } from "../../src/ffi/state_view.ts";

declare const self: Worker;

self.onmessage = ({ data }: MessageEvent<{ doorbellFd: number; wakeFd: number; stateFd: number }>) => {
  const state = new StateView(data.stateFd);
  const waiter = new Waiter(data.doorbellFd, data.wakeFd);
  for (;;) {
    state.consumerSleeping = SLEEP.ANY;
    waiter.wait(-1);
    postMessage(
      state.consumerSleeping !== SLEEP.NONE ? "woken, flag as it was" : "woken, flag cleared by the kernel",
    );
    state.consumerSleeping = SLEEP.NONE;
  }
};
