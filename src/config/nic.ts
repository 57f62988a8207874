/** [[vm.nic]]: a network interface of a VM, with its tunnel between the hosts. */
import { z } from "zod";
import { managedNicFields } from "./qemu.ts";
import { interfaceName, port } from "./values.ts";

/** UDP port of the tunnel with id 1; those of the others follow. */
const TUNNEL_PORT_FIRST = 4790;
const PROXY_PORT_BASE = 7500;

/** The order is the same on both hosts. */
export const nic = z
  .strictObject({
    tap: interfaceName,
    /** 1..255, the same on both hosts; one per interface of all VMs. Part of the VXLAN network identifier. */
    tunnel_id: z.number().int().min(1).max(255).default(1),
    /** UDP port of this interface's tunnel, the same on both hosts. Without it: 4789 + tunnel_id. */
    tunnel_port: port.optional(),
    ...managedNicFields,
    /** proxy = "qemu": the first of two TCP ports of the primary's QEMU, the same on both hosts. Without it: 7500 + 2 * tunnel_id. */
    proxy_port: port.max(65534).optional(),
    /** proxy = "qemu": QEMU's netdev on this tap; needed only if QEMU was handed the tap as a file descriptor. */
    netdev: z.string().min(1).optional(),
  })
  .transform(({ tunnel_port, proxy_port, ...rest }) => ({
    ...rest,
    tunnel_port: tunnel_port ?? TUNNEL_PORT_FIRST - 1 + rest.tunnel_id,
    proxy_port: proxy_port ?? PROXY_PORT_BASE + 2 * rest.tunnel_id,
  }));
