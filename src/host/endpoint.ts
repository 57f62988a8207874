/** Addresses of TCP and UDP services. */
import { isIP } from "node:net";

/** A service's address: a host name or an IP address without brackets, and a port. */
export interface Endpoint {
  host: string;
  port: number;
}

/**
 * Whether `host` can only be this machine: "localhost", an address of 127.0.0.0/8 or ::1, the latter with or
 * without brackets (RFC 1122, 3.2.1.3; RFC 4291, 2.5.3). A name such as 127.example.org is none.
 */
export function isLoopback(host: string): boolean {
  if (host === "localhost") return true;
  const address = host.replace(/^\[(.*)\]$/, "$1");
  switch (isIP(address)) {
    case 4:
      return address === host && address.startsWith("127.");
    case 6:
      return new URL(`http://[${address}]`).hostname === "[::1]";
    default:
      return false;
  }
}

/**
 * `host` as it stands before ":PORT" in URLs and in QEMU's addresses: an IPv6 address in brackets (RFC 3986,
 * 3.2.2).
 */
export function bracketed(host: string): string {
  return isIP(host) === 6 ? `[${host}]` : host;
}
