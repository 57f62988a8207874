/**
 * Reads the agent's configuration file and checks it whole, so that a mistake is reported before anything
 * starts.
 */
import { qemuPaths } from "../qemu/settings.ts";
import { mistakesOf } from "./check.ts";
import type { Config, VmConfig } from "./config.ts";
import { qemuSettings } from "./qemu.ts";
import { type ConfigTables, schema } from "./schema.ts";

/** The file cannot be used; the message says where and why, one line per mistake. */
export class ConfigError extends Error {
  override name = "ConfigError";
}

/** Reads and checks a configuration file. Throws {@link ConfigError} when it is missing or wrong. */
export async function loadConfig(path: string): Promise<Config> {
  const file = Bun.file(path);
  if (!(await file.exists())) {
    throw new ConfigError(`${path}: no such file; give the configuration with --config FILE`);
  }
  return parseConfig(await file.text(), path);
}

/** Parses and checks `text`; `origin` names the file in messages. Throws {@link ConfigError}. */
export function parseConfig(text: string, origin: string): Config {
  let raw: unknown;
  try {
    raw = Bun.TOML.parse(text);
  } catch (error) {
    throw new ConfigError(`${origin}: not valid TOML: ${(error as Error).message}`, { cause: error });
  }
  const result = schema.safeParse(raw);
  if (!result.success) {
    const lines = result.error.issues.map((issue) => {
      const where = issue.path.length > 0 ? issue.path.join(".") : "top level";
      return `${origin}: ${where}: ${issue.message}`;
    });
    throw new ConfigError(lines.join("\n"));
  }
  const tables = result.data;
  const config: Config = { ...tables, vm: tables.vm.map((vm) => withQemu(vm, tables, origin)) };
  const mistakes = mistakesOf(config);
  if (mistakes.length > 0) {
    throw new ConfigError(mistakes.map((mistake) => `${origin}: ${mistake}`).join("\n"));
  }
  return config;
}

function withQemu(
  { qmp, qemu, ...vm }: ConfigTables["vm"][number],
  config: ConfigTables,
  origin: string,
): VmConfig {
  const mistake = (message: string, cause?: unknown) =>
    new ConfigError(`${origin}: vm ${vm.name}: ${message}`, { cause });
  if (qemu === undefined) {
    if (qmp === undefined) {
      throw mistake(
        "needs qmp, the QMP socket of its QEMU, or [vm.qemu], with which the agent starts QEMU itself",
      );
    }
    return { ...vm, qmp, managed: undefined };
  }
  if (qmp !== undefined) {
    throw mistake("qmp is for a QEMU that another program starts: leave it out, or leave out [vm.qemu]");
  }
  try {
    const managed = qemuSettings({
      name: vm.name,
      qemu,
      stateDirectory: config.agent.state_directory,
      disks: vm.disk,
      nics: vm.nic,
      overlayDirectory: vm.overlay.directory,
      overlayBytes: vm.overlay.size_bytes,
    });
    return { ...vm, qmp: qemuPaths(managed.directory).qmp, managed: { ...managed, restart: qemu.restart } };
  } catch (error) {
    throw mistake((error as Error).message, error);
  }
}
