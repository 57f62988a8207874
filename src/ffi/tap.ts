/**
 * The VM's end of a tap device, as QEMU opens it: for benchmarks and tests that stand in for a VM
 * (Documentation/networking/tuntap.rst). Frames carry a 10-byte virtio_net_hdr.
 */
import { Arena, check, closeFd, EAGAIN, errno, libc, SystemError, temporaryString } from "./libc.ts";
import type { Address } from "./native.ts";

const O_RDWR = 2;
const O_NONBLOCK = 0o4000;
const O_CLOEXEC = 0o2000000;
const TUNSETIFF = 0x400454ca;
const TUNSETOFFLOAD = 0x400454d0;
const TUNSETVNETHDRSZ = 0x400454d8;
const TUNSETQUEUE = 0x400454d9;
const IFF_TAP = 0x0002;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
const IFF_MULTI_QUEUE = 0x0100;
const IFF_ATTACH_QUEUE = 0x0200;
const IFF_DETACH_QUEUE = 0x0400;
const IFREQ_BYTES = 40;

/** TUN_F_* of include/uapi/linux/if_tun.h: what the VM takes unsegmented. */
const TUN_F_CSUM = 0x01;
const TUN_F_TSO4 = 0x02;
const TUN_F_TSO6 = 0x04;
const TUN_F_TSO_ECN = 0x08;
const TUN_F_USO4 = 0x20; // Linux 6.2
const TUN_F_USO6 = 0x40;

const VNET_HEADER_BYTES = 10;
/** A whole GSO frame with its header. */
export const TAP_FRAME_BYTES_MAX = VNET_HEADER_BYTES + 65536 + 64;

/** Tap.writeFrom() for a thread that has only the descriptor. */
export function writeFrame(fd: number, address: Address, byteLength: number): void {
  if (Number(libc.write(fd, address, byteLength)) < 0) throw new SystemError("Cannot send into a tap");
}

export class Tap {
  readonly fd: number;
  readonly #arena = new Arena(TAP_FRAME_BYTES_MAX + 4096);
  readonly #buffer: number;

  /**
   * Opens a tap, and creates it if it does not exist, in this thread's network namespace. It vanishes with
   * close() unless it was made persistent.
   *
   * @param options.offload take partial checksums and TCP segmentation, as a virtio guest does
   * @param options.multiQueue of a tap with several queues, one for each Tap of this name
   */
  constructor(
    name: string,
    { offload = true, multiQueue = false }: { offload?: boolean; multiQueue?: boolean } = {},
  ) {
    const arena = this.#arena;
    const path = temporaryString("/dev/net/tun");
    this.fd = check(libc.open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC, 0), "Cannot open /dev/net/tun");
    const request = arena.allocate(IFREQ_BYTES);
    arena.bytes.set(new TextEncoder().encode(name), request);
    const queues = multiQueue ? IFF_MULTI_QUEUE : 0;
    arena.view.setUint16(request + 16, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | queues, true);
    const at = arena.address + request;
    check(libc.ioctl(this.fd, TUNSETIFF, at), `Cannot open the tap ${name}`);
    arena.view.setUint32(request, VNET_HEADER_BYTES, true);
    check(libc.ioctl(this.fd, TUNSETVNETHDRSZ, at), `Cannot set up the tap ${name}`);
    const flags = offload
      ? TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6
      : 0;
    check(libc.ioctl(this.fd, TUNSETOFFLOAD, flags), `Cannot set the offloads of the tap ${name}`);
    this.#buffer = arena.allocate(TAP_FRAME_BYTES_MAX);
  }

  /**
   * Takes this queue of a tap with several out of use, or back into it: what QEMU does as the guest uses more
   * or fewer.
   */
  setAttached(attached: boolean): void {
    const arena = new Arena(4096);
    const request = arena.allocate(IFREQ_BYTES);
    arena.view.setUint16(request + 16, attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE, true);
    const done = libc.ioctl(this.fd, TUNSETQUEUE, arena.address + request);
    arena.close();
    check(done, "Cannot switch a tap's queue");
  }

  /**
   * Sends what the VM would send: a virtio_net_hdr and the frame. Not longer than {@link
   * TAP_FRAME_BYTES_MAX}.
   */
  write(frame: Uint8Array): void {
    this.#arena.bytes.set(frame, this.#buffer);
    this.writeFrom(this.#arena.address + this.#buffer, frame.length);
  }

  /** As write(), from native memory. Allocation free. */
  writeFrom(address: Address, byteLength: number): void {
    writeFrame(this.fd, address, byteLength);
  }

  /** What the VM would get next, virtio_net_hdr first; undefined if there is nothing. */
  read(): Uint8Array | undefined {
    const at = this.#arena.address + this.#buffer;
    const length = Number(libc.read(this.fd, at, TAP_FRAME_BYTES_MAX));
    if (length < 0) {
      if (errno() === EAGAIN) return undefined;
      throw new SystemError("Cannot read from a tap");
    }
    return this.#arena.bytes.slice(this.#buffer, this.#buffer + length);
  }

  close(): void {
    closeFd(this.fd);
    this.#arena.close();
  }
}
