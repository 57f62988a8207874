/**
 * The one place where a native library is opened. An address is a plain number in all of src/ffi: Bun's type
 * for it cannot be added to.
 */
import { dlopen, type FFIFunction, type Library, type Pointer } from "bun:ffi";

/** An address that came out of mmap or native code. */
export type Address = number;

/** A native function that takes addresses as numbers. */
type WithAddresses<F> = F extends (...args: infer Arguments) => infer Result
  ? (
      ...args: {
        [K in keyof Arguments]: Pointer extends Arguments[K] ? Arguments[K] | Address : Arguments[K];
      }
    ) => Result
  : never;

type NativeFunctions<Symbols extends Record<string, FFIFunction>> = {
  readonly [K in keyof Library<Symbols>["symbols"]]: WithAddresses<Library<Symbols>["symbols"][K]>;
};

/**
 * The functions of a shared library.
 *
 * @param name as the dynamic linker knows it: libc.so.6
 * @throws Error if the library or one of the functions is not there
 */
export function openLibrary<const Symbols extends Record<string, FFIFunction>>(
  name: string,
  symbols: Symbols,
): NativeFunctions<Symbols> {
  return dlopen(name, symbols).symbols as unknown as NativeFunctions<Symbols>;
}
