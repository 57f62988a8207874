/**
 * Which test file needs what: the one place, for scripts/test and for CONTRIBUTING.md. Every test file is in
 * exactly one class (test/suites.test.ts). An entry is a file, or a folder whose files are all of the class.
 */

type SuiteClass = "pure" | "tools" | "kernel" | "qemu" | "machine" | "lab";

export type Queue = "lab" | "kernel" | "free";

interface Suites {
  /** One phrase for CONTRIBUTING.md. */
  needs: string;
  /**
   * The queue that its files wait in. Of "lab" and of "kernel" one file runs at a time, beside each other; of
   * "free" as many as there are processors left. While a file of "lab" runs the others have a lower priority.
   */
  queue: Queue;
  entries: readonly string[];
}

export const SUITES: Readonly<Record<SuiteClass, Suites>> = {
  pure: {
    needs: "the packages of package-lock.json and libpcap; no root, no BPF, no QEMU",
    queue: "free",
    entries: [
      "test/agent/checkpoint.test.ts",
      "test/agent/client_path.test.ts",
      "test/agent/control_channel.test.ts",
      "test/agent/fence.test.ts",
      "test/agent/keeper.test.ts",
      "test/agent/instance_memory.test.ts",
      "test/agent/metrics.test.ts",
      "test/agent/next_instance.test.ts",
      "test/agent/peer_api.test.ts",
      "test/agent/tuning.test.ts",
      "test/api",
      "test/bench/against.test.ts",
      "test/bench/result.test.ts",
      "test/capture/datagrams.test.ts",
      "test/capture/formats.test.ts",
      "test/capture/hostile.test.ts",
      "test/capture/random.test.ts",
      "test/capture/streams.test.ts",
      "test/capture/window.test.ts",
      "test/certificates",
      "test/cli",
      "test/compare",
      "test/config",
      "test/datapath/busy_wait.test.ts",
      "test/datapath/changed_frame.test.ts",
      "test/datapath/hold_time.test.ts",
      "test/differential/found.test.ts",
      "test/differential/parts.test.ts",
      "test/divergence/cli.test.ts",
      "test/divergence/explain.test.ts",
      "test/divergence/malformed.test.ts",
      "test/divergence/recorder.test.ts",
      "test/divergence/redact.test.ts",
      "test/divergence/routes.test.ts",
      "test/doctor/render.test.ts",
      "test/e2e/single_sender.test.ts",
      "test/errors",
      "test/failover",
      "test/host",
      "test/lab",
      "test/layers.test.ts",
      "test/qemu/arguments.test.ts",
      "test/qemu/identity.test.ts",
      "test/qmp/closed_connection.test.ts",
      "test/qemu/process.test.ts",
      "test/qmp/lines.test.ts",
      "test/qmp/query.test.ts",
      "test/simulation",
      "test/storage/overlay_watch.test.ts",
      "test/storage/replica_marker.test.ts",
      "test/storage/resync_progress.test.ts",
      "test/suites.test.ts",
      "test/tidy.test.ts",
    ],
  },
  tools: {
    needs: "programs that scripts/setup installs; root, but neither BPF nor QEMU",
    queue: "free",
    entries: [
      "test/agent/watchdog.test.ts",
      "test/arbiter/conformance.test.ts",
      "test/arbiter/etcd.test.ts",
      "test/arbiter/open.test.ts",
      "test/arbiter/witness.test.ts",
      "test/capture/samples.test.ts",
      "test/divergence/pcapng.test.ts",
      "test/divergence/store.test.ts",
      "test/layout.test.ts",
      "test/model",
    ],
  },
  kernel: {
    needs: "root, BPF and network namespaces",
    queue: "kernel",
    entries: [
      "test/bench/compare.test.ts",
      "test/bench/guard.test.ts",
      "test/bpf",
      "test/capture/kernel.test.ts",
      "test/datapath/lease.test.ts",
      "test/datapath/live_release.test.ts",
      "test/datapath/neighbours.test.ts",
      "test/datapath/paired_sleep.test.ts",
      "test/datapath/release_queue.test.ts",
      "test/datapath/resume.test.ts",
      "test/datapath/solo.test.ts",
      "test/datapath/start.test.ts",
      "test/datapath/tap_queues.test.ts",
      "test/datapath/workers.test.ts",
      "test/ffi",
      "test/proxy",
      "test/stacks",
    ],
  },
  qemu: {
    needs: "root, QEMU, and BPF in part",
    queue: "kernel",
    entries: [
      "test/agent/qemu_watch.test.ts",
      "test/agent/watchdog_guest.test.ts",
      "test/bench/checkpoint.test.ts",
      "test/bench/interrupt.test.ts",
      "test/bench/path.test.ts",
      "test/bench/vm.test.ts",
      "test/differential/differences.test.ts",
      "test/differential/sequences.test.ts",
      "test/guest",
      "test/qemu/instance.test.ts",
      "test/qmp/cards.test.ts",
      "test/qmp/check.test.ts",
      "test/qmp/client.test.ts",
      "test/qmp/failover.test.ts",
      "test/qmp/protect.test.ts",
      "test/qmp/secondary.test.ts",
      "test/qmp/tcg_checkpoint.test.ts",
      "test/qmp/tls.test.ts",
      "test/qmp/undo.test.ts",
      "test/qmp/wrong_qemu.test.ts",
      "test/storage/changes.test.ts",
      "test/storage/leftovers.test.ts",
      "test/storage/several_disks.test.ts",
    ],
  },
  machine: {
    needs: "root, BPF and QEMU, and no lab beside it",
    queue: "lab",
    entries: ["test/doctor/doctor.test.ts"],
  },
  lab: {
    needs: "root, BPF, QEMU and a lab: two hosts in namespaces of this machine",
    queue: "lab",
    entries: [
      "test/e2e/agent_restart.test.ts",
      "test/e2e/attached.test.ts",
      "test/e2e/divergence.test.ts",
      "test/e2e/doctor.test.ts",
      "test/e2e/failover.test.ts",
      "test/e2e/faults.test.ts",
      "test/e2e/isolation.test.ts",
      "test/e2e/lives.test.ts",
      "test/e2e/operations.test.ts",
      "test/e2e/overlay_full.test.ts",
      "test/e2e/overload.test.ts",
      "test/e2e/qemu_proxy.test.ts",
      "test/e2e/reprotect.test.ts",
      "test/e2e/resync.test.ts",
      "test/e2e/robustness.test.ts",
      "test/e2e/soak.test.ts",
      "test/e2e/tap_queues.test.ts",
      "test/e2e/tls.test.ts",
      "test/e2e/two_cards.test.ts",
      "test/e2e/wrong_qemu.test.ts",
      "test/workload",
    ],
  },
};

/** The files of the free queue that take longest: they begin first. */
export const LONGEST: readonly string[] = [
  "test/simulation",
  "test/model",
  "test/arbiter/conformance.test.ts",
];

/** The classes that a file is in: one, unless the table above is wrong. */
export function classesOf(file: string): SuiteClass[] {
  return (Object.keys(SUITES) as SuiteClass[]).flatMap((name) =>
    SUITES[name].entries.filter((entry) => file === entry || file.startsWith(`${entry}/`)).map(() => name),
  );
}
