/** The Internet checksum (RFC 1071). */

/** Folds the carries of a sum of 16-bit words into 16 bits; the checksum is its complement. */
export function fold(sum: number): number {
  const folded = (sum & 0xffff) + (sum >>> 16);
  return (folded & 0xffff) + (folded >>> 16);
}
