/**
 * Blocking unix sockets on native memory: megabytes in one call, without a copy. For benchmarks that feed
 * another process and must not limit it.
 */
import { Arena, check, closeFd, EAGAIN, EINTR, errno, libc, SystemError } from "./libc.ts";
import type { Address } from "./native.ts";

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_RCVTIMEO = 20;
const SO_SNDTIMEO = 21;
const FIONBIO = 0x5421;
const SOCKADDR_UN_BYTES = 110;
/** sizeof(sun_path), with the closing zero. */
const PATH_BYTES_MAX = 108;

export class StreamSocket {
  readonly fd: number;

  private constructor(fd: number) {
    this.fd = fd;
  }

  /**
   * Connects to a listening unix socket.
   *
   * @param timeoutMs how long a read or a write may take; longer is an error
   * @throws SystemError if nobody listens there
   */
  static connect(path: string, timeoutMs: number): StreamSocket {
    if (Buffer.byteLength(path) >= PATH_BYTES_MAX) throw new Error(`The socket's path is too long: ${path}`);
    const fd = check(libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "Cannot open a unix socket");
    const arena = new Arena(4096);
    try {
      const address = arena.allocate(SOCKADDR_UN_BYTES);
      arena.view.setUint16(address, AF_UNIX, true);
      arena.bytes.set(new TextEncoder().encode(path), address + 2);
      const at = arena.address + address;
      check(libc.connect(fd, at, SOCKADDR_UN_BYTES), `Cannot connect to ${path}`);
      const timeval = arena.allocate(16);
      arena.view.setBigInt64(timeval, BigInt(Math.floor(timeoutMs / 1000)), true);
      arena.view.setBigInt64(timeval + 8, BigInt((timeoutMs % 1000) * 1000), true);
      for (const option of [SO_RCVTIMEO, SO_SNDTIMEO]) {
        const value = arena.address + timeval;
        check(libc.setsockopt(fd, SOL_SOCKET, option, value, 16), "Cannot set a socket's timeout");
      }
      return new StreamSocket(fd);
    } catch (error) {
      closeFd(fd);
      throw error;
    } finally {
      arena.close();
    }
  }

  /** Writes all of it. Throws if the reader takes too long or has gone. */
  write(address: Address, byteLength: number): void {
    for (let at = 0; at < byteLength; ) {
      const written = Number(libc.write(this.fd, address + at, byteLength - at));
      if (written >= 0) at += written;
      else if (errno() !== EINTR) throw failed("write to");
    }
  }

  /** Reads what there is, waiting for the first byte; 0 when the other end has closed. */
  read(address: Address, byteLength: number): number {
    for (;;) {
      const got = Number(libc.read(this.fd, address, byteLength));
      if (got >= 0) return got;
      if (errno() !== EINTR) throw failed("read from");
    }
  }

  /** From now on reading is for {@link readAvailable}. */
  setNonBlocking(): void {
    const arena = new Arena(4096);
    arena.view.setInt32(0, 1, true);
    const result = libc.ioctl(this.fd, FIONBIO, arena.address);
    const reason = errno();
    arena.close();
    if (result < 0) throw new SystemError("Cannot make a socket non-blocking", reason);
  }

  close(): void {
    closeFd(this.fd);
  }
}

function failed(what: string): Error {
  const reason = errno();
  if (reason === EAGAIN) return new Error(`Cannot ${what} a socket: the other end has stopped.`);
  return new SystemError(`Cannot ${what} a socket`, reason);
}

/**
 * Reads from a non-blocking descriptor (a tap) into native memory; -1 if there is nothing. Allocation free.
 *
 * @throws SystemError
 */
export function readAvailable(fd: number, address: Address, byteLength: number): number {
  const got = Number(libc.read(fd, address, byteLength));
  if (got >= 0) return got;
  const reason = errno();
  if (reason === EAGAIN || reason === EINTR) return -1;
  throw new SystemError("Cannot read from a descriptor", reason);
}
