/**
 * The C library, as far as the agent needs it.
 *
 * Memory that native code is to see lives in an {@link Arena}: an address of a JavaScript typed array goes
 * stale when the engine moves or frees it, an mmapped one does not.
 */
import { CString, FFIType, read, toArrayBuffer } from "bun:ffi";
import { type Address, openLibrary } from "./native.ts";

const { i32, i64, ptr, u32, u64 } = FFIType;

/** The raw functions, for the modules of src/ffi/ only. */
export const libc = openLibrary("libc.so.6", {
  __errno_location: { args: [], returns: ptr },
  strerror: { args: [i32], returns: ptr },
  mmap: { args: [ptr, u64, i32, i32, i32, i64], returns: i64 },
  munmap: { args: [ptr, u64], returns: i32 },
  close: { args: [i32], returns: i32 },
  open: { args: [ptr, i32, u32], returns: i32 },
  read: { args: [i32, ptr, u64], returns: i64 },
  write: { args: [i32, ptr, u64], returns: i64 },
  ioctl: { args: [i32, u64, ptr], returns: i32 },
  socket: { args: [i32, i32, i32], returns: i32 },
  bind: { args: [i32, ptr, u32], returns: i32 },
  connect: { args: [i32, ptr, u32], returns: i32 },
  setsockopt: { args: [i32, i32, i32, ptr, u32], returns: i32 },
  sendmmsg: { args: [i32, ptr, u32, i32], returns: i32 },
  poll: { args: [ptr, u64, i32], returns: i32 },
  eventfd: { args: [u32, i32], returns: i32 },
  epoll_create1: { args: [i32], returns: i32 },
  epoll_ctl: { args: [i32, i32, i32, ptr], returns: i32 },
  epoll_wait: { args: [i32, ptr, i32, i32], returns: i32 },
  clock_gettime: { args: [i32, ptr], returns: i32 },
  if_nametoindex: { args: [ptr], returns: u32 },
  memcmp: { args: [ptr, ptr, u64], returns: i32 },
  memcpy: { args: [ptr, ptr, u64], returns: ptr },
  mount: { args: [ptr, ptr, ptr, u64, ptr], returns: i32 },
  unlink: { args: [ptr], returns: i32 },
  geteuid: { args: [], returns: u32 },
  adjtimex: { args: [ptr], returns: i32 },
  setns: { args: [i32, i32], returns: i32 },
});

export const EAGAIN = 11;
export const EEXIST = 17;
export const EINTR = 4;
export const ENOBUFS = 105;
export const ENOENT = 2;

export const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_ANONYMOUS = 0x20;
export const PAGE_BYTES = 4096;

const CLOCK_REALTIME = 0;
const CLOCK_BOOTTIME = 7;
const IFNAMSIZ = 16;

/** The error number of the last libc or libbpf call on this thread. */
export function errno(): number {
  return read.i32(Number(libc.__errno_location()), 0);
}

/** What an error number means, in the C library's words. */
export function errorText(number: number): string {
  return `${new CString(libc.strerror(number))} (errno ${number})`;
}

/** An error that says what was tried and what the system answered. */
export class SystemError extends Error {
  readonly errno: number;

  constructor(what: string, number: number = errno()) {
    super(`${what}: ${errorText(number)}`);
    this.name = "SystemError";
    this.errno = number;
  }
}

/** Returns `result` unless it is negative; then throws a {@link SystemError}. */
export function check(result: number | bigint, what: string): number {
  if (result < 0) throw new SystemError(what);
  return Number(result);
}

/** Writes a pointer into memory that native code reads, without a bigint for it. */
export function setAddress(view: DataView, at: number, address: Address): void {
  view.setUint32(at, address >>> 0, true);
  view.setUint32(at + 4, (address / 0x1_0000_0000) >>> 0, true);
}

/** Memory shared with native code; `view` and `bytes` cover all of it. */
export class Mapping {
  readonly address: Address;
  readonly byteLength: number;
  readonly buffer: ArrayBuffer;

  /**
   * @param fd -1 for anonymous memory
   * @param protection PROT_READ, or PROT_READ | PROT_WRITE; never use Atomics on a mapping that cannot be
   *   written
   */
  constructor(byteLength: number, fd = -1, protection = PROT_READ | PROT_WRITE, offset = 0) {
    const flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    const address = Number(libc.mmap(null, byteLength, protection, flags, fd, offset));
    if (address === -1) throw new SystemError(`Cannot map ${byteLength} bytes`);
    this.address = address;
    this.byteLength = byteLength;
    this.buffer = toArrayBuffer(address, 0, byteLength);
  }

  /** Views of the mapping must not be used afterwards: the process would be killed. */
  close(): void {
    libc.munmap(this.address, this.byteLength);
  }
}

/** Scratch memory that native code may keep pointers to. Grows only; freed as a whole. */
export class Arena {
  readonly view: DataView;
  readonly bytes: Uint8Array;
  readonly #mapping: Mapping;
  #used = 0;

  constructor(byteLength: number) {
    this.#mapping = new Mapping(Math.ceil(byteLength / PAGE_BYTES) * PAGE_BYTES);
    this.view = new DataView(this.#mapping.buffer);
    this.bytes = new Uint8Array(this.#mapping.buffer);
  }

  get address(): Address {
    return this.#mapping.address;
  }

  /** Offset in the arena of `byteLength` zeroed bytes, aligned to 16. */
  allocate(byteLength: number): number {
    const offset = this.#used;
    this.#used = Math.ceil((offset + byteLength) / 16) * 16;
    if (this.#used > this.bytes.length) {
      throw new Error(`The arena of ${this.bytes.length} bytes is used up; it has to be created larger.`);
    }
    this.bytes.fill(0, offset, this.#used);
    return offset;
  }

  /** Puts a string with its closing zero byte into the arena; returns the address. */
  string(text: string): Address {
    const encoded = new TextEncoder().encode(text);
    const offset = this.allocate(encoded.length + 1);
    this.bytes.set(encoded, offset);
    return this.address + offset;
  }

  /** Puts a copy of `data` into the arena; returns the address. */
  copy(data: Uint8Array): Address {
    const offset = this.allocate(data.length);
    this.bytes.set(data, offset);
    return this.address + offset;
  }

  /** Forgets everything that was allocated. */
  reset(): void {
    this.#used = 0;
  }

  close(): void {
    this.#mapping.close();
  }
}

/**
 * For single calls that need a few bytes; its contents last until the next call of a function of this module.
 */
const scratch = new Arena(64 * 1024);
const timespecOffset = scratch.allocate(16);
const timespec = new DataView(scratch.bytes.buffer, timespecOffset, 16);
const timespecAddress = scratch.address + timespecOffset;
const callOffset = scratch.allocate(8192);

/** Address of `text` as a C string, good for one call. */
export function temporaryString(text: string): Address {
  const { written } = new TextEncoder().encodeInto(
    text,
    scratch.bytes.subarray(callOffset, callOffset + 8191),
  );
  scratch.bytes[callOffset + written] = 0;
  return scratch.address + callOffset;
}

/** Text of a C string in native memory. */
export function textAt(address: Address): string {
  return new CString(address).toString();
}

/** Nanoseconds since boot, suspended time included (CLOCK_BOOTTIME): the clock of leases and records. */
export function bootTimeNs(): bigint {
  libc.clock_gettime(CLOCK_BOOTTIME, timespecAddress);
  return timespec.getBigInt64(0, true) * 1_000_000_000n + timespec.getBigInt64(8, true);
}

/** Nanoseconds since 1970 (CLOCK_REALTIME): the clock of QMP's stamps. */
export function realTimeNs(): bigint {
  libc.clock_gettime(CLOCK_REALTIME, timespecAddress);
  return timespec.getBigInt64(0, true) * 1_000_000_000n + timespec.getBigInt64(8, true);
}

/** {@link bootTimeNs} as a number, without allocating: exact for the first 104 days, then to 2 ns. */
export function bootTimeNsNumber(): number {
  libc.clock_gettime(CLOCK_BOOTTIME, timespecAddress);
  const seconds = timespec.getUint32(0, true) + timespec.getInt32(4, true) * 0x1_0000_0000;
  return seconds * 1e9 + timespec.getUint32(8, true);
}

/** Milliseconds since boot with fraction, suspended time included. */
export function bootTimeMs(): number {
  return bootTimeNsNumber() / 1e6;
}

/** Compares native memory; 0 if equal. `a` and `b` are addresses. Allocation free. */
export function memcmp(a: Address, b: Address, byteLength: number): number {
  return libc.memcmp(a, b, byteLength);
}

/** Index of a network interface of this thread's network namespace; 0 if there is none of that name. */
export function ifindex(name: string): number {
  return name.length < IFNAMSIZ ? libc.if_nametoindex(temporaryString(name)) : 0;
}

/** Closes a file descriptor; errors are of no use to anybody. */
export function closeFd(fd: number): void {
  libc.close(fd);
}

export function isRoot(): boolean {
  return libc.geteuid() === 0;
}
