/**
 * QEMU's own packet proxy as its COLO document sets it up (docs/system/qemu-colo.rst), with the option names
 * of today:
 *
 *   primary    tap ─▶ m0 copies input ──────────────── port 9003 ─▶ f1 ─▶ rew0 ─▶ SVM              secondary
 *              PVM ─▶ redire1 ─ 9001 ─▶ colo-compare ◀─ port 9004 ◀─ f2 ◀─ rew0 ◀─┘
 *              tap ◀─ redire0 ◀─ 9005 ◀───┘ (in a thread of its own)
 *
 * Two things are not as there: vnet_hdr_support is on everywhere, without which the guest's segmentation
 * offload does not survive the proxy, and the two ports that leave the host are on the replication link.
 */
const NETDEV = "net0";
const MIRROR_PORT = 9003;
const SECONDARY_OUTPUT_PORT = 9004;
const PRIMARY_OUTPUT_PORT = 9001;
const RELEASED_PORT = 9005;

const chardev = (id: string, host: string, port: number, more: string) => [
  "-chardev",
  `socket,id=${id},host=${host},port=${port},${more}`,
];
const server = (id: string, host: string, port: number) => chardev(id, host, port, "server=on,wait=off");
const object = (properties: string) => ["-object", properties];
const filter = (kind: string, properties: string) =>
  object(`filter-${kind},netdev=${NETDEV},vnet_hdr_support=on,${properties}`);

/** For the primary; it listens on `address`, its end of the replication link. */
export function primaryProxyArguments(address: string): string[] {
  return [
    ...server("mirror0", address, MIRROR_PORT),
    ...server("compare1", address, SECONDARY_OUTPUT_PORT),
    ...server("compare0", "127.0.0.1", PRIMARY_OUTPUT_PORT),
    ...chardev("compare0-0", "127.0.0.1", PRIMARY_OUTPUT_PORT, "reconnect-ms=1000"),
    ...server("compare_out", "127.0.0.1", RELEASED_PORT),
    ...chardev("compare_out0", "127.0.0.1", RELEASED_PORT, "reconnect-ms=1000"),
    ...filter("mirror", "id=m0,queue=tx,outdev=mirror0"),
    ...filter("redirector", "id=redire0,queue=rx,indev=compare_out"),
    ...filter("redirector", "id=redire1,queue=rx,outdev=compare0"),
    ...object("iothread,id=iothread1"),
    ...object(
      "colo-compare,id=comp0,primary_in=compare0-0,secondary_in=compare1,outdev=compare_out0," +
        "vnet_hdr_support=on,iothread=iothread1",
    ),
  ];
}

/** For the secondary, whose primary listens on `primaryAddress`. */
export function secondaryProxyArguments(primaryAddress: string): string[] {
  return [
    ...chardev("red0", primaryAddress, MIRROR_PORT, "reconnect-ms=1000"),
    ...chardev("red1", primaryAddress, SECONDARY_OUTPUT_PORT, "reconnect-ms=1000"),
    ...filter("redirector", "id=f1,queue=tx,indev=red0"),
    ...filter("redirector", "id=f2,queue=rx,outdev=red1"),
    ...filter("rewriter", "id=rew0,queue=all"),
  ];
}
