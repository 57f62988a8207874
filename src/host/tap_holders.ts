/**
 * Who has a tap open: the VM behind it. The kernel names the interface in the fdinfo of each descriptor of
 * /dev/net/tun (drivers/net/tun.c, tun_chr_show_fdinfo).
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { link } from "./links.ts";

/** The processes of this network namespace that have a tap open, as "NAME (pid NUMBER)". */
export async function tapHolders(tap: string): Promise<string[]> {
  const here = readlinkSync("/proc/self/ns/net");
  const namespaceOf = (pid: string) => unlessHidden(() => readlinkSync(`/proc/${pid}/ns/net`));
  const holders = readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .filter((pid) => namespaceOf(pid) === here && hasOpen(pid, tap))
    .map((pid) => {
      const name = unlessHidden(() => readFileSync(`/proc/${pid}/comm`, "utf8").trim()) ?? "a process";
      return `${name} (pid ${pid})`;
    });
  // A tap has a carrier only while a descriptor is attached to it.
  if (holders.length === 0 && (await link(tap))?.flags.includes("LOWER_UP"))
    return ["a process that this one cannot see"];
  return holders;
}

function hasOpen(pid: string, tap: string): boolean {
  const descriptors = unlessHidden(() => readdirSync(`/proc/${pid}/fd`)) ?? [];
  return descriptors.some((fd) => {
    if (unlessHidden(() => readlinkSync(`/proc/${pid}/fd/${fd}`)) !== "/dev/net/tun") return false;
    const info = unlessHidden(() => readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8")) ?? "";
    return info.split("\n").includes(`iff:\t${tap}`);
  });
}

/** Undefined if the process or its descriptor has ended meanwhile, or if this process may not look at it. */
function unlessHidden<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (["ENOENT", "ESRCH", "EACCES", "EPERM"].includes((error as NodeJS.ErrnoException).code ?? ""))
      return undefined;
    throw error;
  }
}
