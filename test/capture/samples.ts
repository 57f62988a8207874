/**
 * Captures of real networks, as Debian packages ship them, and Scapy, which writes other versions of them.
 * The packages are unpacked into the cache folder, not installed.
 */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { cacheDirectory } from "../../src/host/installed.ts";

/** Each with a file that shows that it is there. */
const PACKAGES = {
  "python3-dpkt": "usr/share/doc/python3-dpkt/examples/data/http.pcap",
  "golang-github-google-gopacket-dev":
    "usr/share/gocode/src/github.com/google/gopacket/pcap/test_loopback.pcap",
  "python3-scapy": "usr/lib/python3/dist-packages/scapy/__init__.py",
} as const;

const folder = join(cacheDirectory(), "captures");

function run(cwd: string, ...command: string[]): void {
  const { exitCode, stderr } = Bun.spawnSync(command, { cwd });
  if (exitCode !== 0) throw new Error(`${command.join(" ")}: ${stderr.toString().trim()}`);
}

/** Downloads a package and unpacks it. */
function unpack(name: keyof typeof PACKAGES): string {
  const target = join(folder, name);
  if (existsSync(join(target, PACKAGES[name]))) return target;
  mkdirSync(folder, { recursive: true });
  const work = mkdtempSync(join(folder, ".work-"));
  try {
    const download = ["apt-get", "--quiet", "-o", "APT::Sandbox::User=root", "download", name];
    try {
      run(work, ...download);
    } catch {
      // A new machine has no package lists yet.
      run(work, "apt-get", "--quiet", "update");
      run(work, ...download);
    }
    const [archive] = readdirSync(work);
    run(work, "dpkg", "--extract", archive!, "unpacked");
    rmSync(target, { recursive: true, force: true });
    renameSync(join(work, "unpacked"), target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  if (!existsSync(join(target, PACKAGES[name]))) {
    throw new Error(
      `the package ${name} does not have ${PACKAGES[name]}: has another release other samples?`,
    );
  }
  return target;
}

export interface Samples {
  /**
   * The same packets once in big-endian and once in little-endian pcapng: folders with files of the same
   * names.
   */
  bigEndian: string;
  littleEndian: string;
  /** Captures by name. */
  captures: Record<"http" | "pppoe" | "dns" | "names" | "ethernet" | "loopback", string>;
  scapy: string;
}

export function samples(): Samples {
  const dpkt = join(unpack("python3-dpkt"), "usr/share/doc/python3-dpkt/examples/data");
  const gopacket = join(
    unpack("golang-github-google-gopacket-dev"),
    "usr/share/gocode/src/github.com/google/gopacket",
  );
  return {
    bigEndian: join(gopacket, "pcapgo/tests/be"),
    littleEndian: join(gopacket, "pcapgo/tests/le"),
    captures: {
      http: join(dpkt, "http.pcap"),
      pppoe: join(dpkt, "nb6-http.pcap"),
      dns: join(dpkt, "dns_icmp.pcap"),
      names: join(gopacket, "pcap/test_dns.pcap"),
      ethernet: join(gopacket, "pcap/test_ethernet.pcap"),
      loopback: join(gopacket, "pcap/test_loopback.pcap"),
    },
    scapy: join(unpack("python3-scapy"), "usr/lib/python3/dist-packages"),
  };
}

export interface ResegmentJob {
  in: string;
  out: string;
  seed: number;
  flip: number | null;
}

export interface Resegmented {
  segments: number;
  bytes: number;
  flipped: { source: [string, number]; destination: [string, number]; offset: number } | null;
}

/** Runs resegment.py with the system's Python. */
export async function resegment(scapy: string, jobs: readonly ResegmentJob[]): Promise<Resegmented[]> {
  const child = Bun.spawn(["/usr/bin/python3", join(import.meta.dir, "resegment.py")], {
    env: { ...process.env, PYTHONPATH: scapy, PYTHONDONTWRITEBYTECODE: "1" },
    stdin: new Blob([JSON.stringify(jobs)]),
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  if (status !== 0) throw new Error(`resegment.py ended with ${status}: ${stderr}`);
  return JSON.parse(stdout) as Resegmented[];
}
