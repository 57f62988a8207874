/** net/net.c, net_fill_rstate: length, then (with vnet_hdr_support) the length of the virtio_net_hdr; big-endian. */
export const QEMU_FRAMING_BYTES = 8;
