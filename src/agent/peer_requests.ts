/** Which part of this agent answers each request of the peer's. */
import type { VmKeeper } from "./keeper.ts";
import type { HeartbeatAnswer, HeartbeatRequest, PeerHandlers } from "./peer_api.ts";

/** What the requests are answered by. */
interface Answering {
  /** Throws an Error if the configuration has no such VM. */
  vm(name: string): VmKeeper;
  heartbeat(request: HeartbeatRequest): HeartbeatAnswer;
}

export function peerHandlers({ vm: named, heartbeat }: Answering): PeerHandlers {
  return {
    heartbeat,
    prepare_secondary: ({ vm, generation, proxy, tls }) =>
      named(vm).life.prepareReplica(generation, proxy, tls),
    async enter_secondary({ vm, generation, proxy }) {
      await named(vm).life.enterReplica(generation, proxy);
      return {};
    },
    resume_secondary: async ({ vm, generation }) => ({
      epoch: await named(vm).life.resumeReplica(generation),
    }),
    async restarting({ vm, generation }) {
      await named(vm).life.peerRestarts(generation);
      return {};
    },
    back({ vm, generation }) {
      named(vm).life.peerIsBack(generation);
      return {};
    },
    drain_input: async ({ vm, mirroredFrames, timeoutMs }) => ({
      drained: await named(vm).life.drainMirrored(mirroredFrames, timeoutMs),
    }),
    loaded({ vm, epoch }) {
      named(vm).life.primary.peerLoaded(epoch);
      return {};
    },
    checkpoint_wanted({ vm, reason }) {
      named(vm).life.primary.checkpointWanted(reason);
      return {};
    },
    succeed({ vm, generation }) {
      named(vm).life.succeed(generation);
      return {};
    },
    abandon({ vm, generation, reason }) {
      named(vm).tell({ type: "abandoned", generation, reason });
      return {};
    },
    replica_lost({ vm, generation, reason }) {
      named(vm).tell({ type: "replica_lost", generation, reason });
      return {};
    },
    give_up({ vm, generation, reason }) {
      named(vm).tell({ type: "peer_gave_up", generation, reason });
      return {};
    },
  };
}
