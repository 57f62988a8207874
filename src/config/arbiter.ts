/** The [arbiter] table of the agent's configuration. */
import { z } from "zod";
import { isLoopback } from "../host/endpoint.ts";
import { absolutePath, milliseconds } from "./values.ts";

const common = {
  /** Longest time of one read or compare-and-swap, over all endpoints. */
  timeout_ms: milliseconds(50, 60_000).default(500),
  /** CA of the site, this agent's certificate and its key, PEM. */
  ca: absolutePath.optional(),
  certificate: absolutePath.optional(),
  key: absolutePath.optional(),
  /** true: plain HTTP to another machine. Anybody on that network can then take a VM over. */
  insecure: z.boolean().default(false),
};

const baseUrl = z
  .url({ protocol: /^https?$/, error: "must be http(s)://ADDRESS:PORT" })
  .refine((url) => new URL(url).pathname === "/", "must have no path");

const witness = z.strictObject({ type: z.literal("witness"), url: baseUrl, ...common });

const etcd = z.strictObject({
  type: z.literal("etcd"),
  endpoints: z.array(baseUrl).min(1, "needs at least one address").max(9),
  /** Keys are this and the VM's name. */
  prefix: z.string().startsWith("/").max(200).default("/colo-agent/vm/"),
  user: z.string().min(1).optional(),
  /** File with the password in its first line. */
  password_file: absolutePath.optional(),
  ...common,
});

const none = z.strictObject({ type: z.literal("none") });

export const arbiterConfig = z
  .discriminatedUnion("type", [witness, etcd, none], {
    error: 'needs type = "witness", "etcd" or "none"',
  })
  .superRefine((arbiter, context) => {
    if (arbiter.type === "none") return;
    const complain = (message: string) => context.addIssue({ code: "custom", message });
    const { ca, certificate, key } = arbiter;
    if ((certificate === undefined) !== (key === undefined))
      complain("certificate and key go together: give both");
    if (certificate !== undefined && ca === undefined)
      complain("give ca too: the CA that the other side must have");
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
