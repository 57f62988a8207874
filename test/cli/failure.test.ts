/** What a command that fails prints. */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { failureText } from "../../src/cli/failure.ts";
import { Problem } from "../../src/errors/problem.ts";

const MAIN = join(import.meta.dir, "../../src/cli/main.ts");

describe("text", () => {
  const cause = new Error("ENOENT");
  const error = new Problem("no VM can start", "make a tap", { cause: new Error("no tap", { cause }) });

  test("the problem, the causes and the remedy", () => {
    expect(failureText("colo-agent", error, { verbose: false })).toBe(
      "colo-agent: no VM can start\n  because: no tap\n  because: ENOENT\n  Make a tap.\n",
    );
  });

  test("verbose: with the place in the program", () => {
    expect(failureText("colo-agent", error, { verbose: true })).toContain("failure.test.ts");
  });

  test("what is no error", () => {
    expect(failureText("colo-agent", "text", { verbose: false })).toBe("colo-agent: text\n");
  });
});

describe("the program", () => {
  function failing(...words: string[]): string {
    const { exitCode, stderr } = Bun.spawnSync([process.execPath, MAIN, ...words]);
    expect(exitCode).toBe(1);
    return stderr.toString();
  }
  const words = ["status", "--api", "unix:/nonexistent/socket"];

  test("a problem and its remedy, without the place", () => {
    const text = failing(...words);
    expect(text).toMatch(
      /^colo-agent: no agent answers at unix:\/nonexistent\/socket: .*\n {2}Give the address/,
    );
    expect(text).not.toContain(".ts:");
  });

  test.each([
    ["before the command", ["--verbose", ...words]],
    ["behind it", [...words, "--verbose"]],
  ])("--verbose %s: with the place", (_, all) => {
    expect(failing(...all)).toContain("agent_http.ts:");
  });
});
