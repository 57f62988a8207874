/** What the kernel knows of a loaded BPF program (struct bpf_prog_info, bpf(2)). */
import { checkBpf, libbpf } from "./libbpf.ts";
import { Arena, closeFd, ENOENT } from "./libc.ts";

const PROG_INFO = { id: 4, mapCount: 52, mapIds: 56 } as const;
const PROG_INFO_BYTES = 64;
const MAPS_MAX = 64;

interface BpfProgramInfo {
  /** Its number in the kernel. */
  id: number;
  /** Numbers of the maps that it uses. */
  mapIds: number[];
}

export function programInfo(fd: number): BpfProgramInfo {
  const arena = new Arena(4096);
  try {
    const { view, address } = arena;
    const info = arena.allocate(PROG_INFO_BYTES);
    const length = arena.allocate(4);
    const ids = arena.allocate(4 * MAPS_MAX);
    view.setUint32(length, PROG_INFO_BYTES, true);
    view.setUint32(info + PROG_INFO.mapCount, MAPS_MAX, true);
    view.setBigUint64(info + PROG_INFO.mapIds, BigInt(address + ids), true);
    const asked = libbpf().bpf_obj_get_info_by_fd(fd, address + info, address + length);
    checkBpf(asked, "Cannot ask the kernel about a BPF program");
    const count = Math.min(view.getUint32(info + PROG_INFO.mapCount, true), MAPS_MAX);
    const mapIds = Array.from({ length: count }, (_, i) => view.getUint32(ids + 4 * i, true));
    return { id: view.getUint32(info + PROG_INFO.id, true), mapIds };
  } finally {
    arena.close();
  }
}

/** As programInfo(), of the program with this number; undefined if there is none any more. */
export function programInfoOf(id: number): BpfProgramInfo | undefined {
  const fd = libbpf().bpf_prog_get_fd_by_id(id);
  if (fd === -ENOENT) return undefined;
  checkBpf(fd, `Cannot open the BPF program ${id}`);
  try {
    return programInfo(fd);
  } finally {
    closeFd(fd);
  }
}
