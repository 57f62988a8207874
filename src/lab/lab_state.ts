/**
 * A lab on disk: what separate commands (up, status, down) must know of it, in
 * /run/colo-agent-lab/NAME/state.json. Its processes are found again by these identities.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { Problem } from "../errors/problem.ts";
import { jsonAs } from "../host/json.ts";
import type { LabOptions } from "./lab_options.ts";
import type { HostLetter } from "./network.ts";

const ROOT = "/run/colo-agent-lab";
const FILE = "state.json";

export const LETTERS: readonly HostLetter[] = ["a", "b"];

const PROCESS = z.object({ pid: z.int().positive(), startTicks: z.number() });

const HOST = z.object({
  letter: z.enum(["a", "b"]),
  netns: z.string(),
  directory: z.string(),
  agent: PROCESS.exactOptional(),
  /** A QMP socket for people and tests. */
  qmp: z.string(),
  /** The agent's HTTP socket. */
  socket: z.string(),
  /** The guest's first serial port. */
  serial: z.string(),
  disk: z.string(),
  /** Of a lab with a second disk. */
  secondDisk: z.string(),
});

const STATE = z.object({
  name: z.string(),
  namespaces: z.object({ client: z.string(), switch: z.string(), a: z.string(), b: z.string() }),
  /** As given to `up`, which has used them already. */
  options: z.custom<LabOptions>((value) => z.object({ name: z.string() }).safeParse(value).success),
  /** The guest is the lab's own. */
  ownGuest: z.boolean(),
  witness: PROCESS.exactOptional(),
  hosts: z.object({ a: HOST, b: HOST }),
});

export type HostState = z.infer<typeof HOST>;
export type LabState = z.infer<typeof STATE>;

/** Directory of a lab's logs, sockets and disks. */
export const labDirectory = (name: string): string => join(ROOT, name);

/** False if there is no lab of that name, or one that was left before it was written down. */
export const hasLabState = (name: string): boolean => existsSync(join(labDirectory(name), FILE));

/** Throws an Error if there is none, or MalformedError. */
export function readLabState(name: string): LabState {
  const path = join(labDirectory(name), FILE);
  if (!existsSync(path)) throw new Problem(`no lab "${name}" is up`, "start one with colo-agent lab up");
  return jsonAs(STATE, readFileSync(path, "utf8"), path);
}

export function writeLabState(state: LabState): void {
  writeFileSync(join(labDirectory(state.name), FILE), JSON.stringify(state, undefined, 2));
}
