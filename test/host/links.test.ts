/** What `ip -json` prints is checked: a stand-in for `ip` prints it. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ipIn, NetworkSetupError } from "../../src/host/ip.ts";
import { MalformedError } from "../../src/host/json.ts";
import { checkTap, link, linkWith, routeTo } from "../../src/host/links.ts";

let directory: string;
const path = process.env.PATH;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-links-"));
  process.env.PATH = `${directory}:${path}`;
});
afterEach(() => {
  process.env.PATH = path;
  rmSync(directory, { recursive: true });
});

/** Makes `ip` print this, complain of that and end with this status; its words are in the file "words". */
function ipPrints(output: unknown, { complaint = "", status = 0 } = {}): void {
  const text = typeof output === "string" ? output : JSON.stringify(output);
  const script = `#!/bin/sh
printf '%s ' "$@" >'${directory}/words'
cat <<'END'
${text}
END
echo '${complaint}' >&2
exit ${status}
`;
  writeFileSync(join(directory, "ip"), script);
  chmodSync(join(directory, "ip"), 0o755);
}
const words = async () => (await Bun.file(join(directory, "words")).text()).trim();

const TAP = {
  ifindex: 7,
  ifname: "tap0",
  mtu: 1500,
  flags: ["UP"],
  master: "br0",
  linkinfo: { info_kind: "tun", info_data: { type: "tap", vnet_hdr: true } },
};

test("a link, a route and an address", async () => {
  ipPrints([{ ...TAP, qdisc: "noqueue" }]);
  expect(await link("tap0")).toEqual(TAP);
  expect(await words()).toBe("-json -details link show dev tap0");
  expect(await checkTap("tap0")).toEqual(TAP);
  ipPrints([{ dst: "198.18.1.2", dev: "repl", prefsrc: "198.18.1.1" }]);
  expect(await routeTo("198.18.1.2")).toEqual({ dev: "repl", prefsrc: "198.18.1.1" });
  ipPrints([
    { ifname: "lo", addr_info: [] },
    { ifname: "repl", addr_info: [{ local: "198.18.1.1" }] },
  ]);
  expect(await linkWith("198.18.1.1")).toBe("repl");
  expect(await linkWith("198.18.1.9")).toBeUndefined();
});

test("in a namespace", async () => {
  ipPrints("done");
  expect(await ipIn("host-a")("link", "show")).toBe("done\n");
  expect(await words()).toBe("-n host-a link show");
});

test("an interface that does not exist is none; another failure is an error with ip's words", async () => {
  ipPrints("", { complaint: 'Device "tap9" does not exist.', status: 1 });
  expect(await link("tap9")).toBeUndefined();
  await expect(checkTap("tap9")).rejects.toThrow(/there is no interface "tap9".*make the tap first/);
  ipPrints("", { complaint: "RTNETLINK answers: Operation not permitted", status: 2 });
  await expect(link("tap0")).rejects.toThrow(NetworkSetupError);
  await expect(link("tap0")).rejects.toThrow(/Operation not permitted/);
});

test("an interface that is no tap", async () => {
  ipPrints([{ ...TAP, linkinfo: { info_kind: "tun", info_data: { type: "tun" } } }]);
  await expect(checkTap("tap0")).rejects.toThrow(/is not a tap device/);
});

describe("malformed", () => {
  test.each<[string, unknown]>([
    ["no output", ""],
    ["text", "2: repl: <UP>"],
    ["no list", {}],
    ["an interface without an index", [{ ifname: "tap0", mtu: 1500 }]],
    ["an MTU of text", [{ ...TAP, mtu: "1500" }]],
    ["an index of 0", [{ ...TAP, ifindex: 0 }]],
  ])("%s is an error that names the command", async (_, output) => {
    ipPrints(output);
    await expect(link("tap0")).rejects.toThrow(MalformedError);
    await expect(link("tap0")).rejects.toThrow(/^ip -json -details link show dev tap0: /);
  });

  test("a route without a device, and no route", async () => {
    ipPrints([{ dst: "198.18.1.2" }]);
    await expect(routeTo("198.18.1.2")).rejects.toThrow(MalformedError);
    ipPrints([]);
    await expect(routeTo("198.18.1.2")).rejects.toThrow(/no route to the peer agent's address/);
  });
});
