/** Which addresses are this machine's own, and IPv6 addresses before a port. */
import { expect, test } from "bun:test";
import { bracketed, isLoopback } from "../../src/host/endpoint.ts";

test.each(["localhost", "127.0.0.1", "127.0.0.53", "127.255.255.254", "::1", "[::1]", "0:0:0:0:0:0:0:1"])(
  "%s is this machine",
  (host) => {
    expect(isLoopback(host)).toBe(true);
  },
);

test.each([
  "127.example.org",
  "127.0.0.1.example.org",
  "127.1",
  "127.0.0.256",
  "127.0.0.1 ",
  "[127.0.0.1]",
  "localhost.example.org",
  "0.0.0.0",
  "::",
  "[::]",
  "::ffff:127.0.0.1",
  "fe80::1",
  "198.18.1.1",
  "",
])("%p may be another machine", (host) => {
  expect(isLoopback(host)).toBe(false);
});

test("only an IPv6 address gets brackets", () => {
  expect(bracketed("2001:db8::1")).toBe("[2001:db8::1]");
  expect(bracketed("198.18.1.1")).toBe("198.18.1.1");
  expect(bracketed("host-a")).toBe("host-a");
});
