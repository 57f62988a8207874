/** [[vm.nic]]: a network interface of a VM, with its tunnel between the hosts. */
import { z } from "zod";
import { managedNicFields } from "./qemu.ts";
import { interfaceName, port } from "./values.ts";

/** UDP port of the tunnel with id 1; those of the others follow. */
const TUNNEL_PORT_FIRST = 4790;
const PROXY_PORT_BASE = 7500;

export const nic = z
  .strictObject({
    tap: interfaceName.describe("The VM's tap, made with `vnet_hdr`, port of a bridge."),
    tunnel_id: z
      .number()
      .int()
      .min(1)
      .max(255)
      .default(1)
      .describe(
        "Part of the VXLAN network identifier. Unique among the interfaces of all VMs, the same on both " +
          "hosts.",
      ),
    tunnel_port: port.optional().meta({
      description: "UDP port of this interface's tunnel. Unique on the host, the same on both hosts.",
      otherwise: "4789 + `tunnel_id`",
    }),
    ...managedNicFields,
    proxy_port: port.max(65534).optional().meta({
      description:
        'With `proxy = "qemu"`: first of two TCP ports on the replication link, the same on both hosts.',
      otherwise: "7500 + 2 × `tunnel_id`",
    }),
    netdev: z.string().min(1).optional().meta({
      description: 'With `proxy = "qemu"`: QEMU\'s netdev, if QEMU got the tap as a file descriptor.',
      otherwise: "the netdev that opened the tap",
    }),
  })
  .describe("One table for each network interface, in the same order on both hosts, at most 8.")
  .transform(({ tunnel_port, proxy_port, ...rest }) => ({
    ...rest,
    tunnel_port: tunnel_port ?? TUNNEL_PORT_FIRST - 1 + rest.tunnel_id,
    proxy_port: proxy_port ?? PROXY_PORT_BASE + 2 * rest.tunnel_id,
  }));
