/**
 * [vm.qemu], and the keys of [[vm.disk]] and [[vm.nic]] that concern a QEMU which the agent starts itself.
 */
import { join } from "node:path";
import { z } from "zod";
import { NIC_MODELS, type QemuSettings } from "../qemu/settings.ts";
import { DISK_DEVICES, DISK_FORMATS, type DiskDevice, type DiskFormat } from "../storage/disk_graph.ts";
import { absolutePath } from "./values.ts";

const argv = z.array(z.string().min(1)).min(1);

/** [vm.qemu]. */
export const qemuConfig = z
  .strictObject({
    command: argv.default(["qemu-system-x86_64"]).describe("The QEMU program, with leading arguments."),
    img_command: argv.default(["qemu-img"]).describe("The qemu-img program, with leading arguments."),
    arguments: z
      .array(z.string())
      .default([])
      .describe(
        "QEMU's arguments, the same on both hosts, without the disks, network cards and QMP socket that " +
          "the agent adds.",
      ),
    environment: z
      .record(z.string(), z.string())
      .default({})
      .describe("Environment variables of QEMU, added to the agent's own."),
    directory: absolutePath.optional().meta({
      description: "Directory of socket, log, pid file and overlays.",
      otherwise: "`STATE_DIRECTORY/vm/NAME`",
    }),
    restart: z
      .boolean()
      .default(true)
      .describe("`false`: a VM that was lost without a replica stays off until `colo-agent start`."),
  })
  .describe(
    "The agent starts QEMU itself ([qemu.md](qemu.md)). Without this table it attaches to the QEMU at `qmp`.",
  );

/** Of a disk. */
export const managedDiskFields = {
  path: absolutePath.optional().meta({
    description: "With `[vm.qemu]`: the image, of the same size on both hosts, a multiple of 64 KiB.",
    otherwise: "required with `[vm.qemu]`",
  }),
  format: z
    .enum(DISK_FORMATS)
    .optional()
    .meta({ description: "With `[vm.qemu]`: format of the image.", otherwise: '`"raw"`' }),
  device: z
    .enum(DISK_DEVICES)
    .optional()
    .meta({ description: "With `[vm.qemu]`: model of the disk.", otherwise: '`"virtio-blk"`' }),
};

/** Of a network card. */
export const managedNicFields = {
  mac: z
    .string()
    .regex(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i, "must be a MAC address such as 52:54:00:12:34:56")
    .optional()
    .meta({
      description: "With `[vm.qemu]`: MAC address of the card, the same on both hosts.",
      kind: "MAC address",
      otherwise: "required with `[vm.qemu]`",
    }),
  model: z
    .enum(NIC_MODELS)
    .optional()
    .meta({ description: "With `[vm.qemu]`: model of the card.", otherwise: '`"virtio-net-pci"`' }),
  queues: z
    .number()
    .int()
    .min(1)
    .max(64)
    .optional()
    .meta({ description: "With `[vm.qemu]`: queue pairs of a virtio card.", otherwise: "1" }),
  vhost: z
    .boolean()
    .optional()
    .meta({ description: "With `[vm.qemu]`: use the kernel's vhost.", otherwise: "`false`" }),
};

type QemuConfig = z.output<typeof qemuConfig>;

interface DiskConfig {
  name: string;
  quorum_node: string;
  export_node: string;
  path?: string | undefined;
  format?: DiskFormat | undefined;
  device?: DiskDevice | undefined;
}

interface NicConfig {
  tap: string;
  mac?: string | undefined;
  model?: (typeof NIC_MODELS)[number] | undefined;
  queues?: number | undefined;
  vhost?: boolean | undefined;
}

/** sockaddr_un holds 108 bytes, the last of them 0. */
const SOCKET_PATH_MAX = 107;

/**
 * What src/qemu/ needs to start a VM's QEMU.
 * @throws Error that names what is missing in the configuration
 */
export function qemuSettings(vm: {
  name: string;
  qemu: QemuConfig;
  stateDirectory: string;
  overlayDirectory?: string | undefined;
  overlayBytes: number;
  disks: readonly DiskConfig[];
  nics: readonly NicConfig[];
}): QemuSettings {
  const { name, qemu } = vm;
  const directory = qemu.directory ?? join(vm.stateDirectory, "vm", name);
  if (Buffer.byteLength(join(directory, "qmp.sock")) > SOCKET_PATH_MAX) {
    throw new Error(`${directory} is too long for a socket's path; set a shorter vm.qemu.directory`);
  }
  return {
    name,
    command: qemu.command,
    imgCommand: qemu.img_command,
    arguments: qemu.arguments,
    environment: qemu.environment,
    directory,
    overlayDirectory: vm.overlayDirectory === undefined ? directory : join(vm.overlayDirectory, name),
    overlayBytes: vm.overlayBytes,
    disks: vm.disks.map(({ name: disk, path, format = "raw", device = "virtio-blk", ...nodes }) => {
      if (path === undefined) {
        throw new Error(
          `disk ${disk} has no path; QEMU is started by the agent, so it has to know the image`,
        );
      }
      const { quorum_node: quorumNode, export_node: baseNode } = nodes;
      return { name: disk, path, format, device, quorumNode, baseNode };
    }),
    nics: vm.nics.map(({ tap, mac, model = "virtio-net-pci", queues = 1, vhost = false }) => {
      if (mac === undefined) {
        throw new Error(
          `the network card on ${tap} has no mac; give it one, the same on both hosts, since QEMU is ` +
            "started by the agent",
        );
      }
      return { tap, mac, model, queues, vhost };
    }),
  };
}
