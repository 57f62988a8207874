/**
 * Values of options: each parser refuses a wrong one with the values that are allowed. And option texts of
 * several commands.
 */
import { InvalidArgumentError } from "commander";

export const API_DEFAULT = "http://127.0.0.1:7401";
export const API_HELP = "the agent's HTTP interface: http://ADDRESS:PORT, or unix:/PATH";
export const JSON_HELP = "print JSON";

/** A parser of whole numbers in decimal digits, from `min` to `max`. `unit` stands in the refusal. */
export function wholeNumber(min: number, max: number, unit = ""): (text: string) => number {
  return parser(/^\d+$/, "whole number", { min, max, unit });
}

/** A parser of numbers, with or without a fraction, from `min` to `max`. `unit` stands in the refusal. */
export function decimal(min: number, max: number, unit = ""): (text: string) => number {
  return parser(/^\d+(\.\d+)?$/, "number", { min, max, unit });
}

function parser(
  form: RegExp,
  kind: string,
  { min, max, unit }: { min: number; max: number; unit: string },
): (text: string) => number {
  const range = max === Number.MAX_SAFE_INTEGER ? `, at least ${min}` : ` from ${min} to ${max}`;
  return (text) => {
    const value = Number(text);
    if (!form.test(text) || value < min || value > max) {
      throw new InvalidArgumentError(`give a ${kind}${range} ${unit}`.trimEnd());
    }
    return value;
  };
}

/** Collects an option that may be given several times. */
export function collect(value: string, previous: readonly string[] = []): string[] {
  return [...previous, value];
}
