/** The [arbiter] table of the agent's configuration. */
import { z } from "zod";
import { isLoopback } from "../host/endpoint.ts";
import { absolutePath, milliseconds } from "./values.ts";

const common = {
  timeout_ms: milliseconds(50, 60_000)
    .default(500)
    .describe("Longest time of one read or compare-and-swap, over all endpoints."),
  ca: absolutePath.optional().describe("PEM file of the CA that signed the arbiter's certificate."),
  certificate: absolutePath
    .optional()
    .describe("PEM file of this agent's certificate; its name must be `agent.name` for a witness."),
  key: absolutePath.optional().describe("PEM file of the certificate's key."),
  insecure: z
    .boolean()
    .default(false)
    .describe("Allows plain HTTP to another machine. Anybody on that network can then take a VM over."),
};

const baseUrl = z
  .url({ protocol: /^https?$/, error: "must be http(s)://ADDRESS:PORT" })
  .refine((url) => new URL(url).pathname === "/", "must have no path")
  .meta({ kind: "URL" });

const witness = z.strictObject({
  type: z.literal("witness"),
  url: baseUrl.describe("Address of the witness, for example `https://192.0.2.3:7300`."),
  ...common,
});

const etcd = z.strictObject({
  type: z.literal("etcd"),
  endpoints: z
    .array(baseUrl)
    .min(1, "needs at least one address")
    .max(9)
    .describe("Client addresses of the etcd members."),
  prefix: z
    .string()
    .startsWith("/")
    .max(200)
    .default("/colo-agent/vm/")
    .describe("A key is this prefix and the VM's name."),
  user: z.string().min(1).optional().describe("User name, if etcd asks for users; with `password_file`."),
  password_file: absolutePath.optional().describe("File with the user's password in its first line."),
  ...common,
});

const none = z.strictObject({ type: z.literal("none") });

export const arbiterConfig = z
  .discriminatedUnion("type", [witness, etcd, none], {
    error: 'needs type = "witness", "etcd" or "none"',
  })
  .describe(
    "The arbiter decides who may send ([arbiters.md](arbiters.md)). Without this table there is no " +
      "automatic takeover.",
  )
  .superRefine((arbiter, context) => {
    if (arbiter.type === "none") return;
    const complain = (message: string) => context.addIssue({ code: "custom", message });
    const { ca, certificate, key } = arbiter;
    if ((certificate === undefined) !== (key === undefined))
      complain("certificate and key go together: give both");
    if (certificate !== undefined && ca === undefined)
      complain("give ca too, the CA of the arbiter's certificate");
    const proven = arbiter.type === "etcd" || certificate !== undefined;
    for (const text of arbiter.type === "witness" ? [arbiter.url] : arbiter.endpoints) {
      const url = new URL(text);
      if (url.protocol === "https:" && (ca === undefined || !proven)) {
        complain(`${text} needs ca${arbiter.type === "witness" ? ", certificate and key" : ""}`);
      }
      if (url.protocol === "http:" && ca !== undefined)
        complain(`${text} would not use the CA: write https://`);
      if (url.protocol === "http:" && !arbiter.insecure && !isLoopback(url.hostname)) {
        complain(
          `${text} is not encrypted, and anybody on that network could take the VM over: use https:// with ` +
            "ca, certificate and key (colo-agent certificates makes them), or say insecure = true",
        );
      }
    }
    if (arbiter.type === "etcd" && (arbiter.user === undefined) !== (arbiter.password_file === undefined)) {
      complain("user and password_file go together: give both or neither");
    }
  });

export type ArbiterConfig = z.output<typeof arbiterConfig>;
export type EtcdConfig = Extract<ArbiterConfig, { type: "etcd" }>;
