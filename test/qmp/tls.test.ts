/**
 * Protection with QEMU's own TLS: what goes over the wire, who is let in, and that nothing of it is left
 * afterwards.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { rmSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { makeCertificates } from "../../src/certificates/make.ts";
import {
  type ColoProcedureError,
  primaryFailover,
  removeTls,
  type StreamTls,
  secondaryDisksCommitted,
  secondaryFailover,
  startProtection,
} from "../../src/colo/index.ts";
import { secondaryNodes } from "../../src/storage/disk_graph.ts";
import { until } from "../until.ts";
import {
  checkpoint,
  freePorts,
  nodeNames,
  PRIMARY_HOST,
  prepare,
  primaryDisk,
  protect,
  qemuImg,
  removeTestDirectory,
  runState,
  SECONDARY_HOST,
  type Side,
  startSide,
  testDirectory,
} from "./pair.ts";

setDefaultTimeout(60_000);
const GUEST = { guest: "bios_writer" } as const;

/** What host-a and host-b tell their QEMUs. */
let a: StreamTls;
let b: StreamTls;

const folder = (site: string, name: string) => join(testDirectory(), site, `${name}-qemu`);

beforeAll(async () => {
  const requests = ["host-a", "host-b", "host-c"].map((name) => ({ name, addresses: [] }));
  for (const site of ["site", "other-site"]) {
    await makeCertificates({ directory: join(testDirectory(), site), requests, days: 2, qemu: true });
  }
  a = { directory: folder("site", "host-a"), peerName: "host-b" };
  b = { directory: folder("site", "host-b"), peerName: "host-a" };
});
afterAll(removeTestDirectory);

/** All that a protection can leave behind in QEMU. */
async function traces(side: Side) {
  const objects = await side.client.execute<{ name: string }[]>("qom-list", { path: "/objects" });
  const parameters = await side.client.execute<Record<string, unknown>>("query-migrate-parameters");
  return {
    objects: objects.map(({ name }) => name).sort(),
    nodes: (await nodeNames(side)).sort(),
    tls: ["tls-creds", "tls-hostname", "tls-authz"].map((name) => parameters[name] ?? ""),
    jobs: await side.client.execute<object[]>("query-block-jobs"),
  };
}

/** Two QEMUs of which the second is protected by the first. */
async function pair(): Promise<{ primary: Side; secondary: Side }> {
  const [primary, secondary] = await Promise.all([
    startSide("primary", GUEST),
    startSide("secondary", GUEST),
  ]);
  await primary.untilWrites(2);
  return { primary, secondary };
}

/** A relay that keeps what goes through it towards the server. */
class Relay {
  readonly heard: Buffer[] = [];
  readonly #sockets: Socket[] = [];
  private constructor(
    private readonly server: Server,
    readonly port: number,
  ) {}

  static open(toPort: number): Promise<Relay> {
    return new Promise((resolve) => {
      const server = createServer((near) => {
        const far = connect({ host: SECONDARY_HOST, port: toPort });
        relay.#sockets.push(near, far);
        near.on("data", (chunk: Buffer) => relay.heard.push(chunk));
        near.pipe(far);
        far.pipe(near);
        for (const socket of [near, far]) socket.on("error", () => undefined);
        near.once("close", () => far.destroy());
        far.once("close", () => near.destroy());
      });
      let relay: Relay;
      server.listen(0, PRIMARY_HOST, () => {
        relay = new Relay(server, (server.address() as { port: number }).port);
        resolve(relay);
      });
    });
  }

  close(): void {
    this.server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}

test.each([true, false])("what goes over the wire, with TLS: %p", async (on) => {
  const { primary, secondary } = await pair();
  const ports = await freePorts();
  await prepare(secondary, ports, on ? b : undefined);
  if (on) {
    // Nobody without a certificate gets at the disk.
    const uri = `nbd://${SECONDARY_HOST}:${ports.nbd}/export0`;
    expect(() => qemuImg("info", uri)).toThrow(/TLS/);
  }
  const nbd = await Relay.open(ports.nbd);
  const migrate = await Relay.open(ports.migrate);
  try {
    const disk = { ...primaryDisk({ nbd: nbd.port, migrate: 1 }), nbdHost: PRIMARY_HOST };
    await startProtection(primary.client, {
      disks: [disk],
      migrateHost: PRIMARY_HOST,
      migratePort: migrate.port,
      tls: on ? a : undefined,
    });
    await checkpoint(primary);
    const [disks, memory] = [Buffer.concat(nbd.heard), Buffer.concat(migrate.heard)];
    expect(memory.length).toBeGreaterThan(100_000);
    // The migration's magic (migration/savevm.c), and the text that fills the disk's first 64 KiB behind its
    // boot sector.
    expect(memory.indexOf("QEVM") === 0).toBe(!on);
    expect(disks.includes("primary0 primary0")).toBe(!on);
    // A handshake of TLS 1.x (RFC 8446, 5.1).
    expect(memory.readUInt16BE(0) === 0x1603).toBe(on);
  } finally {
    nbd.close();
    migrate.close();
    await Promise.all([primary.kill(), secondary.kill()]);
  }
});

describe.each(["kill", "hang"] as const)("the other host is lost (%s)", (how) => {
  test("the secondary, and then the primary of a new pair; nothing is left, roles swap", async () => {
    const { primary, secondary } = await pair();
    const before = await traces(primary);
    const { disks } = await protect(primary, secondary, { tls: a, secondaryTls: b });
    expect((await traces(primary)).objects).not.toEqual(before.objects);
    await checkpoint(primary);
    await Promise.all([primary.untilWrites(2), secondary.untilWrites(2)]);
    if (how === "kill") await secondary.kill();
    else secondary.hang();
    expect((await primaryFailover(primary.client, { disks })).leftovers).toEqual([]);
    expect(await runState(primary)).toBe("running");
    expect(await traces(primary)).toEqual(before);
    await primary.untilWrites(2);
    await secondary.kill();

    const next = await startSide("secondary", GUEST);
    const nextBefore = await traces(next);
    await protect(primary, next, { tls: a, secondaryTls: b });
    await checkpoint(primary);
    await primary.untilWrites(2);
    if (how === "kill") await primary.kill();
    else primary.hang();
    await secondaryFailover(next.client);
    await removeTls(next.client);
    const active = next.disks.map((disk) => secondaryNodes(disk).active);
    await until("the overlays are written back", () => secondaryDisksCommitted(next.client, active));
    expect(await runState(next)).toBe("running");
    const { objects, tls } = await traces(next);
    expect({ objects, tls }).toEqual({ objects: nextBefore.objects, tls: nextBefore.tls });
    await next.untilWrites(2);
    await primary.kill();

    // What was a secondary is now a primary, and its certificates are the client's.
    const alone = await traces(next);
    const third = await startSide("secondary", GUEST);
    const swapped = await protect(next, third, { tls: b, secondaryTls: a });
    await checkpoint(next);
    await Promise.all([next.untilWrites(2), third.untilWrites(2)]);
    await third.kill();
    expect((await primaryFailover(next.client, { disks: swapped.disks })).leftovers).toEqual([]);
    expect(await traces(next)).toEqual(alone);
    await next.kill();
  });
});

describe("a peer that does not fit: the VM runs alone as before", () => {
  let primary: Side;
  let before: Awaited<ReturnType<typeof traces>>;
  beforeAll(async () => {
    primary = await startSide("primary", GUEST);
    await primary.untilWrites(2);
    before = await traces(primary);
  }, 60_000);
  afterAll(() => primary.kill());

  const cases: [
    string,
    () => { tls?: StreamTls; secondaryTls?: StreamTls; withoutDisk?: boolean },
    RegExp,
  ][] = [
    ...[false, true].flatMap((withoutDisk): typeof cases => {
      const with_ = withoutDisk ? "no disk" : "a disk";
      return [
        [
          `the server is of another site, ${with_}`,
          () => ({ tls: a, secondaryTls: { ...b, directory: folder("other-site", "host-b") }, withoutDisk }),
          /hasn't got a known issuer/,
        ],
        [
          `the server is another host, ${with_}`,
          () => ({ tls: a, secondaryTls: { ...b, directory: folder("site", "host-c") }, withoutDisk }),
          /does not match the hostname host-b/,
        ],
        [
          `the client is another host, ${with_}`,
          () => ({ tls: { ...a, directory: folder("site", "host-c") }, secondaryTls: b, withoutDisk }),
          /does not accept this host's client certificate/,
        ],
        [`only the primary has TLS, ${with_}`, () => ({ tls: a, withoutDisk }), /or has no TLS/],
        [
          `only the secondary has TLS, ${with_}`,
          () => ({ secondaryTls: b, withoutDisk }),
          withoutDisk ? /the secondary expects TLS/ : /TLS negotiation required/,
        ],
      ];
    }),
    [
      "there is no such folder",
      () => ({ tls: { ...a, directory: "/nonexistent" }, secondaryTls: b }),
      /Setting up TLS failed: .*nonexistent/,
    ],
  ];

  test.each(cases)("%s", async (_what, make, message) => {
    const { withoutDisk = false, tls, secondaryTls } = make();
    const secondary = await startSide("secondary", withoutDisk ? { guest: "bios", disks: [] } : GUEST);
    try {
      const ports = await freePorts();
      await prepare(secondary, ports, secondaryTls);
      const error = (await startProtection(primary.client, {
        disks: withoutDisk ? [] : [primaryDisk(ports)],
        migrateHost: SECONDARY_HOST,
        migratePort: ports.migrate,
        tls,
      }).then(
        () => undefined,
        (reason: unknown) => reason,
      )) as ColoProcedureError | undefined;
      expect(error?.name).toBe("ColoProcedureError");
      expect(error?.message).toMatch(message);
      expect(error?.leftovers).toEqual([]);
      expect(await runState(primary)).toBe("running");
      expect(await traces(primary)).toEqual(before);
      await primary.untilWrites(1);
    } finally {
      await secondary.kill();
    }
  });
});

test("the secondary hangs as the primary begins its handshake: the VM goes on", async () => {
  const [primary, secondary] = await Promise.all([
    startSide("primary", { guest: "bios_writer" }),
    startSide("secondary", { guest: "bios", disks: [] }),
  ]);
  await primary.untilWrites(1);
  const before = await traces(primary);
  const ports = await freePorts();
  await prepare(secondary, ports, b);
  secondary.hang();
  const error = await startProtection(primary.client, {
    migrateHost: SECONDARY_HOST,
    migratePort: ports.migrate,
    tls: a,
    stallMs: 2_000,
  }).catch((reason: unknown) => reason);
  expect((error as ColoProcedureError).step).toBe("Copying the memory");
  expect((error as ColoProcedureError).leftovers).toEqual([]);
  expect(await runState(primary)).toBe("running");
  await primary.untilWrites(1);
  expect(await traces(primary)).toEqual(before);
  await Promise.all([primary.kill(), secondary.kill()]);
});

test("a secondary that cannot be opened keeps nothing of TLS", async () => {
  const secondary = await startSide("secondary", GUEST);
  const before = await traces(secondary);
  const broken = join(testDirectory(), "broken");
  await makeCertificates({
    directory: broken,
    requests: [{ name: "host-b", addresses: [] }],
    days: 2,
    qemu: true,
  });
  rmSync(join(broken, "host-b-qemu", "server-key.pem"));
  const ports = await freePorts();
  await expect(prepare(secondary, ports, { ...b, directory: join(broken, "host-b-qemu") })).rejects.toThrow(
    /Setting up TLS failed/,
  );
  expect(await traces(secondary)).toEqual(before);
  const wrong = { ...secondary, disks: secondary.disks.map((disk) => ({ ...disk, baseNode: "no" })) };
  await expect(prepare(wrong, ports, b)).rejects.toThrow("Exporting the disk no failed");
  expect(await traces(secondary)).toEqual(before);
  await prepare(secondary, ports, b);
  await secondary.kill();
});
