/** Network devices as the agent and QEMU make them, in a namespace of their own. */
import { Tap } from "../ffi/tap.ts";
import { type Check, type DoctorContext, type Finding, type Group, ok, once } from "./check.ts";

export const TAP = "tap0";
export const TUNNEL = "tunnel0";
export const INJECT = "inject0";
const BRIDGE = "bridge0";
const TUNNEL_PORT = 4790;

const makeTap = once(async (context) => {
  const namespace = await context.namespace();
  await namespace.ip("tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr");
});

const makeTunnel = once(async (context) => {
  const namespace = await context.namespace();
  await namespace.ip("link", "add", TUNNEL, "type", "vxlan", "external", "dstport", String(TUNNEL_PORT));
  await namespace.ip("link", "add", INJECT, "type", "veth", "peer", "name", `${INJECT}-peer`);
});

/** A tap, a VXLAN tunnel in external mode and a veth pair. Throws an Error with the kernel's words. */
export async function makeDevices(context: DoctorContext): Promise<void> {
  await makeTap(context);
  await makeTunnel(context);
}

/** A tap whose VM end takes frames with a virtio_net_hdr, attached to a bridge. */
async function tap(context: DoctorContext): Promise<Finding> {
  await makeTap(context);
  const namespace = await context.namespace();
  await namespace.ip("link", "add", BRIDGE, "type", "bridge");
  await namespace.ip("link", "set", "dev", TAP, "master", BRIDGE);
  namespace.enter(() => new Tap(TAP)).close();
  return ok("made with vnet_hdr, opened with all offloads, port of a bridge");
}

async function tunnel(context: DoctorContext): Promise<Finding> {
  await makeTunnel(context);
  return ok("VXLAN in external mode and veth can be made");
}

const checks: Check[] = [
  { id: "tap", title: "Tap", run: tap },
  { id: "tunnel", title: "VXLAN and veth", run: tunnel },
];

export const devicesGroup: Group = { name: "devices", title: "Network devices", checks };
