/** What the tidy test lets pass, and why. Each list may only get shorter. */

/**
 * Source files longer than {@link FILE_LINES_MAX}: each does one job that would not read better in two files.
 */
export const LONG_FILES: Readonly<Record<string, string>> = {
  "src/colo/protect.ts": "one procedure and its undoing: each step stands beside what takes it back",
  "src/qmp/client.ts": "one connection: its queue, pending calls and limits change the same fields",
};

/** Names that look like paths of this repository and are somebody else's. */
export const FOREIGN_PATHS: readonly string[] = [
  "bpf/bpf_core_read.h", // libbpf's headers
  "bpf/bpf_endian.h",
  "bpf/bpf_helpers.h",
  "bpf/libbpf.h",
  "docs/devel/qapi-code-gen", // QEMU's documentation
  "docs/interop/qmp-spec.rst",
  "docs/system/qemu-colo.rst",
  "guest/base", // the cache of scripts/setup
  "guest/image",
];
