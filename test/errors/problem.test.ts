/** What is shown of an error: the problem, the remedy, the causes. */
import { describe, expect, test } from "bun:test";
import { causesOf, explained, Problem } from "../../src/errors/problem.ts";

describe("explained", () => {
  test("a problem and its remedy, whatever words they hold", () => {
    const error = new Problem("the path is a:b; use of it", "make another: run mkdir");
    expect(error.message).toBe("the path is a:b; use of it: make another: run mkdir");
    expect(explained(error)).toEqual({
      problem: "the path is a:b; use of it",
      advice: "Make another: run mkdir.",
    });
  });

  test("a remedy that ends with a full stop gets no second one", () => {
    expect(explained(new Problem("a", "Use b.")).advice).toBe("Use b.");
  });

  test("another error has a problem only", () => {
    expect(explained(new TypeError("no; use that"))).toEqual({ problem: "no; use that" });
    expect(explained("text")).toEqual({ problem: "text" });
  });
});

describe("causes", () => {
  test("those that say something new, in their order", () => {
    const deepest = new Error("ENOENT");
    const quoted = new Error("cannot read /a: ENOENT", { cause: deepest });
    const top = new Error("no VM can start", { cause: quoted });
    expect(causesOf(top)).toEqual([quoted]);
    expect(causesOf(new Error(`x: ${top.message}`, { cause: top }))).toEqual([quoted]);
    expect(causesOf(new Error("alone"))).toEqual([]);
    expect(causesOf(undefined)).toEqual([]);
  });

  test("an error that is its own cause ends", () => {
    const error = new Error("a");
    const other = new Error("b", { cause: error });
    error.cause = other;
    expect(causesOf(error).length).toBeLessThanOrEqual(10);
  });
});
