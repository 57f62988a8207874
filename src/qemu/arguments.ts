/**
 * QEMU's arguments for a protected VM: the same machine in both roles, as migration needs it, with another
 * graph below its disks.
 */
import { diskArguments } from "../storage/disk_graph.ts";
import { type ManagedNic, type QemuRole, type QemuSettings, qemuPaths } from "./settings.ts";

/** All arguments behind the command. */
export function qemuArguments(settings: QemuSettings, role: QemuRole): string[] {
  const paths = qemuPaths(settings.directory);
  return [
    ...(settings.arguments.includes("-name") ? [] : ["-name", settings.name]),
    ...settings.arguments,
    ...settings.nics.flatMap(nicArguments),
    ...diskArguments(role, settings.disks, settings.overlayDirectory),
    ...["-qmp", `unix:${paths.qmp},server=on,wait=off`],
    ...["-pidfile", paths.pidFile],
    ...(role === "secondary" ? ["-incoming", "defer"] : []),
  ];
}

/** The -netdev and -device arguments of one card. */
function nicArguments(nic: ManagedNic, index: number): string[] {
  const virtio = nic.model === "virtio-net-pci";
  const queues = virtio && nic.queues > 1 ? nic.queues : 1;
  const netdev = ["tap", `id=net${index}`, `ifname=${nic.tap}`, "script=no", "downscript=no", "vnet_hdr=on"];
  netdev.push(`vhost=${nic.vhost ? "on" : "off"}`);
  if (queues > 1) netdev.push(`queues=${queues}`);
  const device = [nic.model, `id=nic${index}`, `netdev=net${index}`, `mac=${nic.mac}`, "romfile="];
  // Else the guest sends ARP after each checkpoint on one side only (src/colo/check.ts).
  if (virtio) device.push("guest_announce=off");
  // A vector for each queue, for control and for changes of configuration.
  if (queues > 1) device.push("mq=on", `vectors=${2 * queues + 2}`);
  return ["-netdev", netdev.join(","), "-device", device.join(",")];
}
