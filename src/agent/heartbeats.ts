/**
 * The contents of a heartbeat, and the effects of a heartbeat and of its answer, on either network.
 */
import type { Path } from "../failover/state.ts";
import type { HeartbeatAnswer, HeartbeatRequest } from "./peer_api.ts";

/** One VM, as heartbeats see it. */
export interface HeartbeatVm {
  /** `generation`: the replica that the lease of this host depends on, or that is being made. */
  readonly heartbeat: { generation: number | undefined; ready: boolean; uplink: boolean };
  peerSeen(path: Path, about: { ready: boolean; uplink: boolean }): void;
  /** The peer's heartbeat for this VM; `answer` is called with whether it may extend its lease. */
  heartbeatCame(path: Path, generation: number, answer: (accepted: boolean) => void): void;
  heartbeatAnswered(path: Path, sentMs: number, generation: number, accepted: boolean): void;
}

/** All VMs of the configuration; undefined: this host has no QEMU for it. */
type HeartbeatVms = () => Iterable<readonly [name: string, vm: HeartbeatVm | undefined]>;

export class Heartbeats {
  constructor(private readonly vms: HeartbeatVms) {}

  /** What the next heartbeat says. */
  request(): HeartbeatRequest {
    const vms: HeartbeatRequest["vms"] = {};
    for (const [name, vm] of this.vms()) {
      if (vm === undefined) vms[name] = { ready: false, uplink: true };
      else vms[name] = vm.heartbeat;
    }
    return { vms };
  }

  /** The peer's heartbeat; `answer` is called when all VMs have answered. */
  came(path: Path, request: HeartbeatRequest, answer: (answer: HeartbeatAnswer) => void): void {
    const all: HeartbeatAnswer = { vms: {} };
    let open = 1;
    const done = () => {
      if (--open === 0) answer(all);
    };
    for (const [name, vm] of this.vms()) {
      const asked = request.vms[name];
      if (asked !== undefined) vm?.peerSeen(path, asked);
      const { ready, uplink } = vm?.heartbeat ?? { ready: false, uplink: true };
      const about: HeartbeatAnswer["vms"][string] = { ready, uplink };
      all.vms[name] = about;
      if (asked?.generation === undefined) continue;
      if (vm === undefined) {
        about.accepted = false;
        continue;
      }
      open++;
      vm.heartbeatCame(path, asked.generation, (accepted) => {
        about.accepted = accepted;
        done();
      });
    }
    done();
  }

  /** The peer has answered what was `asked` at `sentMs` (CLOCK_BOOTTIME of this host). */
  answered(path: Path, sentMs: number, asked: HeartbeatRequest, answer: HeartbeatAnswer): void {
    for (const [name, vm] of this.vms()) {
      const about = answer.vms[name];
      if (about === undefined || vm === undefined) continue;
      vm.peerSeen(path, about);
      const generation = asked.vms[name]?.generation;
      if (generation !== undefined) vm.heartbeatAnswered(path, sentMs, generation, about.accepted === true);
    }
  }
}
