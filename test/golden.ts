/** Golden files: texts that a test compares with, in test/golden/ unless the test says otherwise. */
import { join } from "node:path";
import { given } from "./variables.ts";

/** The golden text of this name; with COLO_UPDATE_GOLDEN=1 it is first replaced by `actual`. */
export async function goldenText(name: string, actual: string): Promise<string> {
  const file = join(import.meta.dir, "golden", name);
  if (given("COLO_UPDATE_GOLDEN") === "1") await Bun.write(file, actual);
  return Bun.file(file).text();
}
