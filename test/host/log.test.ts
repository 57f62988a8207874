/** One line of JSON per event, with all that an error says. */
import { expect, spyOn, test } from "bun:test";
import { createLogger, type Logger } from "../../src/host/log.ts";

/** The lines that `write` logs, parsed. */
function logged(write: (log: Logger) => void): Record<string, unknown>[] {
  const lines: string[] = [];
  const stderr = spyOn(process.stderr, "write").mockImplementation((text) => {
    lines.push(String(text));
    return true;
  });
  try {
    write(createLogger("info", { agent: "host-a" }));
  } finally {
    stderr.mockRestore();
  }
  return lines.map((line) => JSON.parse(line) as Record<string, unknown>);
}

test("fields of the logger, of its child and of the event; below the level nothing", () => {
  const [line, ...others] = logged((log) => {
    log.debug("not this");
    log.child({ vm: "vm1" }).info("phase", { from: "alone", bytes: 5n });
  });
  expect(others).toEqual([]);
  expect(line).toMatchObject({
    level: "info",
    message: "phase",
    ...{ agent: "host-a", vm: "vm1", from: "alone", bytes: "5" },
  });
});

test("an error keeps its name, its cause and where it was thrown", () => {
  const cause = new TypeError("the deepest");
  const [line] = logged((log) => log.warn("failed", { error: new Error("the outer", { cause }) }));
  const { error } = line as { error: { stack: string[]; cause: object } };
  expect(error).toMatchObject({
    name: "Error",
    message: "the outer",
    cause: { name: "TypeError", message: "the deepest" },
  });
  expect(error.stack[0]).toContain("log.test.ts");
});

test("errors that are each other's cause end", () => {
  const first = new Error("a");
  first.cause = new Error("b", { cause: first });
  expect(logged((log) => log.error("circle", { error: first }))).toHaveLength(1);
});
