/**
 * COLO with each model of network card that the agent can give a VM: its state goes along in checkpoints and
 * takeovers.
 */
import { afterAll, afterEach, expect, setDefaultTimeout, test } from "bun:test";
import { primaryFailover, secondaryFailover } from "../../src/colo/index.ts";
import { NIC_MODELS } from "../../src/qemu/settings.ts";
import { checkpoint, protect, removeTestDirectory, runState, type Side, startSide } from "./pair.ts";

// Not a claim: emulated guests on a busy machine take their time.
setDefaultTimeout(60_000);
let sides: Side[] = [];
afterEach(async () => {
  await Promise.all(sides.map((side) => side.kill()));
});
afterAll(removeTestDirectory);

const cards = NIC_MODELS.flatMap((model, index) => [
  ...["-netdev", `hubport,id=net${index},hubid=${index}`],
  ...["-device", `${model},id=nic${index},netdev=net${index},romfile=`],
]);

test.each(["primary", "secondary"] as const)(`${NIC_MODELS.join(", ")}: the %s goes on`, async (survivor) => {
  const options = { guest: "bios_writer", extraArguments: cards } as const;
  const [primary, secondary] = await Promise.all([
    startSide("primary", options),
    startSide("secondary", options),
  ]);
  sides = [primary, secondary];
  await primary.untilWrites(2);
  const { disks } = await protect(primary, secondary);
  for (let i = 0; i < 3; i++) await checkpoint(primary);
  const side = survivor === "primary" ? primary : secondary;
  await (survivor === "primary" ? secondary : primary).kill();
  if (survivor === "primary") await primaryFailover(primary.client, { disks });
  else await secondaryFailover(secondary.client);
  await side.untilWrites(3);
  expect(await runState(side)).toBe("running");
});
