/**
 * Guests of a few bytes of real-mode code, as a BIOS image of 64 KiB: the processor begins at its last 16
 * bytes, which jump to the first (Intel SDM volume 3, 10.1.4).
 */
const IMAGE_BYTES = 0x10000;
const RESET_VECTOR = 0xfff0;

/** jmp 0xf000:0x0000 */
const JUMP_TO_FIRST = [0xea, 0x00, 0x00, 0x00, 0xf0];

function image(code: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(IMAGE_BYTES).fill(0xf4); // hlt
  bytes.set(code, 0);
  bytes.set(JUMP_TO_FIRST, RESET_VECTOR);
  return bytes;
}

const EXIT_PORT = 0xf4;
const EXIT_VALUE = 0x2a;

/** Devices of {@link exitingGuest}. */
export const EXIT_DEVICE = ["-device", `isa-debug-exit,iobase=${EXIT_PORT},iosize=1`] as const;
/** hw/misc/debugexit.c */
export const EXIT_STATUS = (EXIT_VALUE << 1) | 1;

/** Ends QEMU with {@link EXIT_STATUS} at once. */
export function exitingGuest(): Uint8Array {
  return image([
    ...[0xb0, EXIT_VALUE], // mov al, EXIT_VALUE
    ...[0xe6, EXIT_PORT], // out EXIT_PORT, al
    0xf4, // hlt
    ...[0xeb, 0xfd], // jmp to the hlt
  ]);
}

export const CONSOLE_PORT = 0xe9;

/**
 * Counts in memory for ever, and writes the count's low byte to port {@link CONSOLE_PORT} some hundred times
 * a second.
 */
export function countingGuest(): Uint8Array {
  return image([
    ...[0x31, 0xc0], // xor ax, ax
    ...[0x8e, 0xd8], // mov ds, ax
    ...[0x66, 0xb9, 0x00, 0x00, 0x10, 0x00], // 4: mov ecx, 0x100000
    ...[0x67, 0xe2, 0xfd], // loop to itself, with ecx
    ...[0x66, 0xff, 0x06, 0x00, 0x10], // inc dword [0x1000]
    ...[0xa0, 0x00, 0x10], // mov al, [0x1000]
    ...[0xe6, CONSOLE_PORT], // out CONSOLE_PORT, al
    ...[0xeb, 0xeb], // jmp 4
  ]);
}
