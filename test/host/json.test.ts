/** JSON from outside the process: what is malformed is named with its source. */
import { expect, test } from "bun:test";
import { z } from "zod";
import { jsonAs, MalformedError } from "../../src/host/json.ts";

const schema = z.object({ a: z.number() });

test("a good text is parsed, and keys that the schema lacks are left out", () => {
  expect(jsonAs(schema, '{"a":1,"b":2}', "x")).toEqual({ a: 1 });
});

test.each([
  ["{", /^x: not JSON: \{/],
  ["", /^x: not JSON/],
  ["null", /^x: .*expected object/],
  ["[]", /^x: .*expected object/],
  ['{"a":"1"}', /^x: a: .*expected number/],
  ["{}", /^x: a: .*expected number/],
])("%p is malformed", (text, message) => {
  expect(() => jsonAs(schema, text, "x")).toThrow(MalformedError);
  expect(() => jsonAs(schema, text, "x")).toThrow(message);
});
