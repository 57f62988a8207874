/** Settings of the embedded witness: command line over file over default. */
import { z } from "zod";
import { listenEndpoint } from "../config/values.ts";
import { isLoopback } from "../host/endpoint.ts";

export interface WitnessFlags {
  config?: string;
  listen?: string;
  directory?: string;
  tlsCa?: string;
  tlsCertificate?: string;
  tlsKey?: string;
  insecure?: boolean;
}

const path = z.string().min(1);

const schema = z
  .strictObject({
    listen: listenEndpoint.prefault("0.0.0.0:7300"),
    directory: path.default("/var/lib/colo-agent/witness"),
    ca: path.optional(),
    certificate: path.optional(),
    key: path.optional(),
    insecure: z.boolean().default(false),
    log_level: z.enum(["error", "warn", "info", "debug"]).default("info"),
  })
  .superRefine((settings, context) => {
    const complain = (message: string) => context.addIssue({ code: "custom", message });
    const given = [settings.ca, settings.certificate, settings.key].filter(
      (file) => file !== undefined,
    ).length;
    if (given !== 0 && given !== 3) {
      complain(
        "the CA, the certificate and the key go together: give all three (--tls-ca --tls-certificate " +
          "--tls-key)",
      );
    }
    if (given === 0 && !settings.insecure && !isLoopback(settings.listen.host)) {
      complain(
        `without TLS, anybody who reaches ${settings.listen.host} could take the VMs over: give --tls-ca, ` +
          "--tls-certificate and --tls-key (colo-agent certificates makes them), listen on 127.0.0.1, or " +
          "say --insecure",
      );
    }
  });

type WitnessSettings = z.output<typeof schema>;

/** Throws an Error that names the file or option and what is wrong with it. */
export async function loadWitnessSettings(flags: WitnessFlags): Promise<WitnessSettings> {
  const origin = flags.config ?? "witness";
  let file: Record<string, unknown> = {};
  if (flags.config !== undefined) {
    try {
      file = Bun.TOML.parse(await Bun.file(flags.config).text()) as Record<string, unknown>;
    } catch (error) {
      throw new Error(`${flags.config}: ${(error as Error).message}`, { cause: error });
    }
  }
  const given = {
    listen: flags.listen,
    directory: flags.directory,
    ca: flags.tlsCa,
    certificate: flags.tlsCertificate,
    key: flags.tlsKey,
    insecure: flags.insecure,
  };
  const result = schema.safeParse({
    ...file,
    ...Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)),
  });
  if (result.success) return result.data;
  const lines = result.error.issues.map((issue) =>
    [origin, ...issue.path.map(String), issue.message].join(": "),
  );
  throw new Error(lines.join("\n"));
}
