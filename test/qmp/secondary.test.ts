import { afterAll, afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import { createServer, type Server } from "node:net";
import {
  announceSelf,
  type ColoProcedureError,
  type PrepareSecondaryOptions,
  prepareSecondary,
  secondaryDisksCommitted,
  secondaryFailover,
  startProtection,
} from "../../src/colo/index.ts";
import { LAB_NODES } from "../../src/lab/qemu.ts";
import { probeNbdServer } from "../../src/storage/mirror.ts";
import {
  checkpoint,
  freePorts,
  type Ports,
  primaryDisk,
  removeTestDirectory,
  runState,
  SECONDARY_HOST,
  type Side,
  startSide,
} from "./pair.ts";

// Not a claim: emulated guests on a busy machine take their time.
setDefaultTimeout(180_000);
afterAll(removeTestDirectory);

let secondary: Side;
beforeEach(async () => {
  secondary = await startSide("secondary", { guest: "bios" });
}, 60_000);
afterEach(() => secondary.kill());

async function failure(promise: Promise<unknown>): Promise<ColoProcedureError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason as ColoProcedureError,
  );
  expect(error?.name).toBe("ColoProcedureError");
  return error!;
}

function prepareOptions(ports: Ports): PrepareSecondaryOptions {
  return {
    nbd: {
      host: SECONDARY_HOST,
      port: ports.nbd,
      exports: [{ name: "export0", node: LAB_NODES.disk }],
    },
    migrateHost: SECONDARY_HOST,
    migratePort: ports.migrate,
  };
}

async function occupy(port: number): Promise<Server> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(port, SECONDARY_HOST, resolve));
  return server;
}

test("a taken NBD port is reported, and it can be tried again", async () => {
  const ports = await freePorts();
  const taken = await occupy(ports.nbd);
  const error = await failure(prepareSecondary(secondary.client, prepareOptions(ports)));
  expect(error.step).toBe("Starting the NBD server");
  expect(error.message).toContain("Address already in use");
  await new Promise((resolve) => taken.close(resolve));
  await prepareSecondary(secondary.client, prepareOptions(ports));
  await probeNbdServer(SECONDARY_HOST, ports.nbd, 10_000);
});

test("a taken migration port is reported, and the disk is not left exported", async () => {
  const ports = await freePorts();
  const taken = await occupy(ports.migrate);
  const error = await failure(prepareSecondary(secondary.client, prepareOptions(ports)));
  expect(error.step).toBe("Opening the migration port");
  expect(error.message).toContain("Address already in use");
  expect(error.leftovers).toEqual([]);
  expect(await secondary.client.execute<object[]>("query-block-exports")).toEqual([]);
  await expect(probeNbdServer(SECONDARY_HOST, ports.nbd, 1_000)).rejects.toThrow("no connection");
  taken.close();
});

test("an export of a node that does not exist is reported and nothing stays open", async () => {
  const ports = await freePorts();
  const exports = [{ name: "export0", node: "nothing" }];
  const nbd = { host: SECONDARY_HOST, port: ports.nbd, exports };
  const error = await failure(
    prepareSecondary(secondary.client, {
      nbd,
      migrateHost: SECONDARY_HOST,
      migratePort: ports.migrate,
    }),
  );
  expect(error.step).toBe("Exporting the disk nothing");
  await expect(probeNbdServer(SECONDARY_HOST, ports.nbd, 1_000)).rejects.toThrow("no connection");
});

test("a QEMU that runs a VM is no secondary", async () => {
  const running = await startSide("primary", { guest: "bios" });
  const ports = await freePorts();
  const error = await failure(
    prepareSecondary(running.client, { migrateHost: SECONDARY_HOST, migratePort: ports.migrate }),
  );
  expect(error.message).toContain("-incoming defer");
  await running.kill();
});

test("a secondary that has received nothing cannot take over", async () => {
  const error = await failure(secondaryFailover(secondary.client));
  expect(error.step).toBe("x-colo-lost-heartbeat");
  expect(await runState(secondary)).toBe("inmigrate");
});

test("IPv6 addresses work on both ways, and the survivor announces itself", async () => {
  const primary = await startSide("primary", { guest: "bios" });
  const ports = await freePorts();
  const disk = { ...primaryDisk(ports), nbdHost: "::1" };
  const migration = { migrateHost: "::1", migratePort: ports.migrate };
  await prepareSecondary(secondary.client, {
    nbd: { host: "::1", port: ports.nbd, exports: [{ name: disk.exportName, node: LAB_NODES.disk }] },
    ...migration,
  });
  await startProtection(primary.client, { disks: [disk], ...migration });
  await checkpoint(primary);
  expect(await secondaryDisksCommitted(secondary.client, [LAB_NODES.active])).toBe(false);
  await primary.kill();
  await secondaryFailover(secondary.client);
  expect(await runState(secondary)).toBe("running");
  await announceSelf(secondary.client);
});
