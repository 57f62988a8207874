/** What the peer's agent asks for: the decisions say whether, this file does it. */
import { accepted } from "./accepted.ts";
import type { Heartbeats } from "./heartbeats.ts";
import type { VmInstance } from "./instance.ts";
import type { PeerHandlers } from "./peer_api.ts";

const DONE = {};

interface PeerRequestParts {
  heartbeats: Heartbeats;
  /** The VM's instance on this host. Throws an Error that says why there is none. */
  instance(vm: string): VmInstance;
}

export function peerHandlers({ heartbeats, instance }: PeerRequestParts): PeerHandlers {
  return {
    heartbeat: (body) => new Promise((resolve) => heartbeats.came("control", body, resolve)),

    prepare_secondary: async ({ vm, generation, proxy, tls }) => {
      const own = instance(vm);
      if (proxy !== own.config.proxy) {
        throw new Error(
          `VM ${vm} has proxy = "${proxy}" on the host that runs it and "${own.config.proxy}" on this ` +
            "one; write the same on both",
        );
      }
      if (tls !== own.usesTls) {
        const [there, here] = tls ? ["on", "off"] : ["off", "on"];
        throw new Error(
          `TLS is ${there} on the host that runs VM ${vm} and ${here} on this one; write [tls] on both ` +
            "hosts or on neither",
        );
      }
      return accepted(own, { type: "prepare", generation }, () => own.prepareReplica(generation));
    },

    enter_secondary: async ({ vm, generation, proxy }) => {
      const own = instance(vm);
      await accepted(own, { type: "entered", generation }, () => own.secondary.follow(proxy));
      return DONE;
    },

    resume_secondary: async ({ vm, generation }) => {
      const own = instance(vm);
      const epoch = await accepted(own, { type: "resume_wanted", generation }, () =>
        own.secondary.settledEpoch(),
      );
      return { epoch };
    },

    restarting: async ({ vm, generation }) => {
      await accepted(instance(vm), { type: "peer_restarts", generation });
      return DONE;
    },

    back: async ({ vm, generation }) => {
      await accepted(instance(vm), { type: "peer_is_back", generation });
      return DONE;
    },

    succeed: async ({ vm, generation }) => {
      const own = instance(vm);
      await accepted(own, { type: "succeed", generation }, () => own.proxy.comparison?.succeed());
      return DONE;
    },

    drain_input: async ({ vm, mirroredFrames, timeoutMs }) => ({
      drained: (await instance(vm).proxy.inputBarrier?.drainMirrored(mirroredFrames, timeoutMs)) ?? true,
    }),

    loaded: async ({ vm, epoch }) => {
      instance(vm).primary.peerLoaded(epoch);
      return DONE;
    },

    checkpoint_wanted: async ({ vm, reason }) => {
      instance(vm).primary.checkpointWanted(reason);
      return DONE;
    },

    abandon: async ({ vm, generation, reason }) => {
      instance(vm).tell({ type: "abandoned", generation, reason });
      return DONE;
    },

    replica_lost: async ({ vm, generation, reason }) => {
      instance(vm).tell({ type: "replica_lost", generation, reason });
      return DONE;
    },

    give_up: async ({ vm, generation, reason }) => {
      instance(vm).tell({ type: "peer_gave_up", generation, reason });
      return DONE;
    },
  };
}
