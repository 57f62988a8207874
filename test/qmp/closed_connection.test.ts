/** What QEMU reports when the secondary closes a connection, and what is added to it. */
import { expect, test } from "bun:test";
import { explainClosed } from "../../src/qmp/tls.ts";

/** One cause each time, seen with QEMU 11.1 on a busy machine: the secondary has TLS, the primary has not. */
const CLOSED = [
  "Unable to read from socket: Connection reset by peer",
  "Unable to write to socket: Connection reset by peer",
  "Unable to write to socket: Broken pipe",
  "Failed to save iterable device state: Unable to write to socket: Connection reset by peer",
  "ram_save_setup failed: Input/output error",
  "Channel error: Input/output error",
];

test.each(CLOSED)("%s", (message) => {
  const [without, with_] = [false, true].map((tls) => explainClosed(new Error(message), tls) as Error);
  expect(without!.message).toBe(
    `${message}. The secondary closed the connection; its QEMU's log says why. ` +
      "Without TLS this may mean that the secondary expects TLS",
  );
  expect(with_!.message).toContain("does not accept this host's client certificate, or has no TLS");
});

test("another error stays as it is", () => {
  const error = new Error("Certificate does not match the hostname host-b");
  expect(explainClosed(error, true)).toBe(error);
  const disk = new Error("copying disk0: Input/output error");
  expect(explainClosed(disk, false)).toBe(disk);
});
