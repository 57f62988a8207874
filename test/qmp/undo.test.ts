/**
 * Protection that fails at any of its steps leaves a VM that runs alone as before, ready for another try.
 *
 * One primary with the disk-writing guest lives through all of it, each time with a new secondary that is
 * killed or hung as the step begins. At the end it is protected after all.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createServer, type Server } from "node:net";
import {
  type ColoProcedureError,
  clearProtection,
  type ProtectionOptions,
  primaryFailover,
  startProtection,
} from "../../src/colo/index.ts";
import { LAB_NODES } from "../../src/lab/qemu.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { MIGRATION_ENDED, migrationStatus } from "../../src/qmp/vm.ts";
import {
  checkpoint,
  freePorts,
  nodeNames,
  PRIMARY_HOST,
  primaryDisk,
  protect,
  removeTestDirectory,
  runState,
  SECONDARY_HOST,
  type Side,
  startSide,
} from "./pair.ts";

let primary: Side;

beforeAll(async () => {
  primary = await startSide("primary");
  await primary.untilWrites(5);
}, 180_000);
// Not a claim: emulated guests on a busy machine take their time.
setDefaultTimeout(180_000);
afterAll(removeTestDirectory);

async function expectUntouched(): Promise<void> {
  expect(await runState(primary)).toBe("running");
  expect((await nodeNames(primary)).sort()).toEqual([LAB_NODES.quorum, LAB_NODES.disk].sort());
  expect(await primary.client.execute<object[]>("query-block-jobs")).toEqual([]);
  const capabilities = await primary.client.execute<{ capability: string; state: boolean }[]>(
    "query-migrate-capabilities",
  );
  const set = capabilities.filter((entry) => entry.state).map((entry) => entry.capability);
  expect(set.filter((name) => name !== "events")).toEqual([]);
  await primary.untilWrites(3);
}

async function expectFailure(attempt: Promise<unknown>): Promise<ColoProcedureError> {
  const error = (await attempt.then(
    () => undefined,
    (reason: unknown) => reason,
  )) as ColoProcedureError | undefined;
  expect(error?.name).toBe("ColoProcedureError");
  expect(error?.leftovers).toEqual([]);
  await expectUntouched();
  return error!;
}

const STEPS = [
  "Reaching the secondary's disks",
  "Copying the disks",
  "Copying the memory",
  "Switching the data plane",
  "Completing the disk copy",
  "Attaching the disk replication",
  "Entering COLO",
] as const;

type Limits = Required<Pick<ProtectionOptions, "stallMs" | "commandMs" | "probeMs" | "switchoverMs">>;

/** Short: a lost secondary takes an attempt to one of them. */
const LIMITS: Limits = { stallMs: 500, commandMs: 1_000, probeMs: 500, switchoverMs: 1_500 };
/** How much longer they may have to be for what comes before the loss. */
const SLOWNESS_MAX = 16;

/**
 * Makes an attempt to protect, each with a secondary of its own, until the secondary is lost in one of
 * them. On a machine that is too slow for the limits an attempt fails before that; the next one has twice
 * the time.
 *
 * @param attempt loses the secondary by loss.now(), and expects nothing of it where that has not happened
 */
async function untilLost(
  how: "kill" | "hang",
  attempt: (secondary: Side, limits: Limits, loss: { happened: boolean; now(): void }) => Promise<void>,
): Promise<void> {
  for (let slowness = 1; slowness <= SLOWNESS_MAX; slowness *= 2) {
    const secondary = await startSide("secondary");
    const loss = {
      happened: false,
      now() {
        this.happened = true;
        process.kill(secondary.pid, how === "kill" ? "SIGKILL" : "SIGSTOP");
      },
    };
    const limits = Object.fromEntries(
      Object.entries(LIMITS).map(([name, ms]) => [name, ms * slowness]),
    ) as unknown as Limits;
    try {
      await attempt(secondary, limits, loss);
    } finally {
      await secondary.kill();
    }
    if (loss.happened) return;
  }
  throw new Error(`with ${SLOWNESS_MAX} times the limits no attempt gets as far as the loss`);
}

describe.each(["kill", "hang"] as const)("a secondary that is lost (%s)", (how) => {
  test.each(STEPS)("at: %s", (at) =>
    untilLost(how, async (secondary, limits, loss) => {
      let undone = 0;
      let stopped = 0;
      const error = await expectFailure(
        protect(primary, secondary, {
          ...limits,
          hooks: {
            onStep: (step) => {
              if (step === at) loss.now();
            },
            onStopped: async () => {
              stopped++;
            },
            onUndo: async () => {
              undone++;
            },
          },
        }),
      );
      const reached = STEPS.indexOf(error.step as (typeof STEPS)[number]);
      if (loss.happened) expect(reached).toBeGreaterThanOrEqual(STEPS.indexOf(at));
      expect(undone).toBe(stopped);
      expect(stopped).toBe(reached >= STEPS.indexOf("Switching the data plane") ? 1 : 0);
    }),
  );
});

describe.each(["kill", "hang"] as const)("a secondary that is lost (%s) while COLO begins", (how) => {
  test.each([
    ["primary", "device"],
    ["primary", "colo"],
    ["secondary", "colo"],
    ["secondary", "RESUME"],
  ] as const)("at the %s's %s", (whose, what) =>
    untilLost(how, async (secondary, { commandMs, switchoverMs }, loss) => {
      const side = whose === "primary" ? primary : secondary;
      const off = side.client.on("*", (event) => {
        const name = event.name === "MIGRATION" ? event.data.status : event.name;
        if (name === what) loss.now();
      });
      try {
        const attempt = protect(primary, secondary, { commandMs, switchoverMs });
        const result = await attempt.catch(() => undefined);
        if (result === undefined) {
          const { step } = await expectFailure(attempt);
          if (loss.happened) expect(step).toBe("Entering COLO");
        } else {
          // QEMU was past the event when this process heard of it: an ordinary failover.
          expect(loss.happened).toBe(true);
          expect((await primaryFailover(primary.client, { disks: result.disks })).leftovers).toEqual([]);
          await expectUntouched();
        }
      } finally {
        off();
      }
    }),
  );
});

describe("an agent that is lost", () => {
  test.each(STEPS)("at: %s; the next one gets the VM to run alone", async (at) => {
    const secondary = await startSide("secondary");
    const doomed = primary.client;
    const attempt = protect(primary, secondary, {
      hooks: {
        onStep: (step) => {
          if (step === at) doomed.close();
        },
      },
    });
    await expect(attempt).rejects.toThrow();
    primary.client = await QmpClient.connect(primary.qmp);
    const disks = [primaryDisk(await freePorts())];
    const { status } = await migrationStatus(primary.client);
    // As Primary.runAlone() of src/agent.
    const leftovers = MIGRATION_ENDED.has(status)
      ? await clearProtection(primary.client, disks)
      : (await primaryFailover(primary.client, { disks })).leftovers;
    expect(leftovers).toEqual([]);
    await expectUntouched();
    await secondary.kill();
  });
});

test("nobody listens at the peer's address", async () => {
  const ports = await freePorts();
  const disk = primaryDisk(ports);
  const withDisk = { disks: [disk], migrateHost: SECONDARY_HOST, migratePort: ports.migrate };
  expect((await expectFailure(startProtection(primary.client, withDisk))).step).toBe(
    "Reaching the secondary's disks",
  );
  const withoutDisk = { migrateHost: PRIMARY_HOST, migratePort: ports.migrate };
  const error = await expectFailure(startProtection(primary.client, withoutDisk));
  expect(error.step).toBe("Copying the memory");
  expect(error.message).toContain("Connection refused");
});

describe("something else listens at the NBD port", () => {
  let server: Server;
  let greeting: string;
  let port: number;
  beforeAll(async () => {
    server = createServer((socket) => {
      socket.on("error", () => undefined);
      if (greeting !== "") socket.write(greeting);
    });
    await new Promise<void>((resolve) => server.listen(0, SECONDARY_HOST, resolve));
    port = (server.address() as { port: number }).port;
  });
  afterAll(() => {
    server.close();
  });

  test.each([
    ["that says nothing", "", "no NBD server"],
    ["that is no NBD server", "SSH-2.0-OpenSSH\r\n", "is not an NBD server"],
    ["that breaks off the negotiation", "NBDMAGICnonsense", "blockdev-add"],
  ])("%s", async (_what, text, message) => {
    greeting = text;
    const disk = { ...primaryDisk({ nbd: port, migrate: 1 }) };
    const error = await expectFailure(
      startProtection(primary.client, {
        disks: [disk],
        migrateHost: SECONDARY_HOST,
        migratePort: 1,
        probeMs: 1_000,
        commandMs: 1_000,
      }),
    );
    expect(error.message).toContain(message);
  });
});

test("the secondary's export has another name", async () => {
  const secondary = await startSide("secondary");
  const ports = await freePorts();
  const { prepare } = await import("./pair.ts");
  await prepare(secondary, ports);
  const disk = { ...primaryDisk(ports), exportName: "other" };
  const error = await expectFailure(
    startProtection(primary.client, {
      disks: [disk],
      migrateHost: SECONDARY_HOST,
      migratePort: ports.migrate,
    }),
  );
  expect(error.message).toContain("other");
  await secondary.kill();
});

test("a hook that fails", async () => {
  const secondary = await startSide("secondary");
  const error = await expectFailure(
    protect(primary, secondary, {
      hooks: {
        onStopped: async () => {
          throw new Error("the data plane is on strike");
        },
      },
    }),
  );
  expect(error.step).toBe("Switching the data plane");
  expect(error.message).toContain("on strike");
  await secondary.kill();
});

test("the caller's signal", async () => {
  const secondary = await startSide("secondary");
  const abort = new AbortController();
  const error = await expectFailure(
    protect(primary, secondary, {
      signal: abort.signal,
      hooks: {
        onStep: (step) => {
          if (step === "Entering COLO") {
            secondary.hang();
            setTimeout(() => abort.abort(new Error("the heartbeat is lost")), 200);
          }
        },
      },
    }),
  );
  expect(error.message).toContain("the heartbeat is lost");
  await secondary.kill();
});

test("and then it is protected after all", async () => {
  const secondary = await startSide("secondary");
  await protect(primary, secondary);
  await checkpoint(primary);
  await checkpoint(primary);
  await Promise.all([primary.untilWrites(5), secondary.untilWrites(5)]);
  // A second protection of a protected VM is refused and does no harm.
  const ports = await freePorts();
  const again = startProtection(primary.client, { migrateHost: SECONDARY_HOST, migratePort: ports.migrate });
  expect(
    (await again.catch((error: unknown) => error as ColoProcedureError)) as ColoProcedureError,
  ).toMatchObject({
    step: "Checking the VM's state",
  });
  await checkpoint(primary);
});
