/** Real arbiters as processes of their own on loopback, to be killed and started again. */
import { mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeCertificates } from "../../src/certificates/make.ts";
import { etcdProgram } from "../../src/lab/assets.ts";
import { until } from "../until.ts";

const MAIN = join(import.meta.dir, "../../src/cli/main.ts");
const START_TIMEOUT_MS = 30_000;

/** A directory that is removed with all processes working in it. */
export class Workplace implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), "colo-test-arbiter-"));
  readonly #servers: ServerProcess[] = [];

  path(name: string): string {
    return join(this.directory, name);
  }

  /** A server that is not started yet. `ready` is asked until it no longer throws. */
  server(name: string, command: readonly string[], ready: () => Promise<void>): ServerProcess {
    const server = new ServerProcess(command, this.path(`${name}.log`), ready);
    this.#servers.push(server);
    return server;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.#servers) await server.kill();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

export class ServerProcess {
  #child: ReturnType<typeof Bun.spawn> | undefined;

  constructor(
    private readonly command: readonly string[],
    private readonly logPath: string,
    private readonly ready: () => Promise<void>,
  ) {}

  get log(): string {
    return readFileSync(this.logPath, "utf8");
  }

  async start(): Promise<void> {
    const log = openSync(this.logPath, "a");
    const child = Bun.spawn([...this.command], { stdin: "ignore", stdout: log, stderr: log });
    this.#child = child;
    const ready = async () => {
      try {
        await this.ready();
        return true;
      } catch (error) {
        if (child.exitCode !== null) throw error;
        return false;
      }
    };
    try {
      await until(`${this.command[0]} takes requests`, ready, { limitMs: START_TIMEOUT_MS, pollMs: 20 });
    } catch (error) {
      throw new Error(`${this.command.join(" ")} did not come up:\n${this.log}`, { cause: error });
    }
  }

  /** kill -9; returns when it is gone. */
  async kill(): Promise<void> {
    this.#child?.kill("SIGKILL");
    await this.#child?.exited;
    this.#child = undefined;
  }
}

/** A free TCP port of 127.0.0.1. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Certificates of "server" (127.0.0.1) and of each name, in DIRECTORY/certificates. */
export async function siteCertificates(workplace: Workplace, names: readonly string[]): Promise<void> {
  await makeCertificates({
    directory: workplace.path("certificates"),
    requests: [
      { name: "server", addresses: ["127.0.0.1", "localhost"] },
      ...names.map((name) => ({ name, addresses: [] })),
    ],
    days: 2,
  });
}

export function tlsPaths(workplace: Workplace, name: string) {
  const file = (end: string) => workplace.path(`certificates/${end}`);
  return { ca: file("ca.pem"), certificate: file(`${name}.pem`), key: file(`${name}.key`) };
}

/** `under`: a command that runs it. */
export function witness(
  workplace: Workplace,
  port: number,
  options: { tls: boolean },
  under: readonly string[] = [],
): ServerProcess {
  const { ca, certificate, key } = tlsPaths(workplace, "server");
  const files = ["--tls-ca", ca, "--tls-certificate", certificate, "--tls-key", key];
  return workplace.server(
    "witness",
    [
      ...under,
      ...[process.execPath, MAIN, "witness", "--listen", `127.0.0.1:${port}`],
      ...["--directory", workplace.path("witness")],
      ...(options.tls ? files : []),
    ],
    async () => {
      const tls = {
        ca: readFileSync(ca, "utf8"),
        cert: readFileSync(certificate, "utf8"),
        key: readFileSync(key, "utf8"),
      };
      const url = `${options.tls ? "https" : "http"}://127.0.0.1:${port}/v1/health`;
      const response = await fetch(url, options.tls ? { tls } : {});
      if (!response.ok) throw new Error(`HTTP ${response.status}`);
    },
  );
}

export interface EtcdMember {
  name: string;
  clientPort: number;
  peerPort: number;
}

export async function etcdMember(name: string): Promise<EtcdMember> {
  return { name, clientPort: await freePort(), peerPort: await freePort() };
}

/** One member of a cluster of `members`; ready as soon as it takes requests, with or without a leader. */
export function etcd(
  workplace: Workplace,
  member: EtcdMember,
  members: readonly EtcdMember[],
  options: { tls?: boolean } = {},
): ServerProcess {
  const { ca, certificate, key } = tlsPaths(workplace, "server");
  const client = `${options.tls ? "https" : "http"}://127.0.0.1:${member.clientPort}`;
  const peer = (of: EtcdMember) => `http://127.0.0.1:${of.peerPort}`;
  const files = [
    ...["--client-cert-auth", "--trusted-ca-file", ca],
    ...["--cert-file", certificate, "--key-file", key],
  ];
  return workplace.server(
    member.name,
    [
      ...[etcdProgram(), "--name", member.name, "--data-dir", workplace.path(member.name)],
      ...["--listen-client-urls", client, "--advertise-client-urls", client],
      ...["--listen-peer-urls", peer(member), "--initial-advertise-peer-urls", peer(member)],
      ...["--initial-cluster", members.map((of) => `${of.name}=${peer(of)}`).join(",")],
      ...["--initial-cluster-state", "new", "--log-level", "warn"],
      ...(options.tls ? files : []),
    ],
    () =>
      new Promise((resolve, reject) => {
        Bun.connect({
          hostname: "127.0.0.1",
          port: member.clientPort,
          socket: {
            open: (socket) => {
              socket.end();
              resolve();
            },
            data: () => undefined,
            connectError: (_, error) => reject(error),
          },
        }).catch(reject);
      }),
  );
}
