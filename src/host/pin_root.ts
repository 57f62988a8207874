/** The folder of the agents' pinned BPF maps and programs, on bpffs: PIN_ROOT/AGENT/VM. */
export const PIN_ROOT = "/sys/fs/bpf/colo-agent";
