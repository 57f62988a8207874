/**
 * Kinds of values that several tables of the configuration have. `kind` names them in docs/configuration.md,
 * which scripts/configuration-docs makes from this schema.
 */
import { isIP } from "node:net";
import { z } from "zod";
import type { Endpoint } from "../host/endpoint.ts";

/** `kind` of names of agents and VMs (src/failover/vm_record.ts). */
export const NAME = "1-32 of a-z 0-9 -";

export const port = z.number().int().min(1).max(65535).meta({ kind: "port" });
export const milliseconds = (min: number, max: number) => z.number().int().min(min).max(max);
export const percent = z.number().int().min(1).max(100);

export const absolutePath = z.string().startsWith("/", "must be an absolute path").meta({ kind: "path" });

const ADDRESS_PORT = /^(?<host>[^\s:]+|\[[0-9a-fA-F:.]+\]):(?<port>\d{1,5})$/;

/**
 * ADDRESS:PORT, as an {@link Endpoint}; an IPv6 address in brackets. `portMin` 0: the kernel may choose the
 * port.
 */
const endpointFrom = (portMin: 0 | 1) =>
  z
    .string()
    .meta({ kind: "ADDRESS:PORT" })
    .transform((text, context): Endpoint => {
      const parts = ADDRESS_PORT.exec(text)?.groups;
      if (parts === undefined) {
        context.addIssue({ code: "custom", message: "must be ADDRESS:PORT" });
        return z.NEVER;
      }
      const { host = "", port: digits } = parts;
      const number = Number(digits);
      if (number < portMin || number > 65535)
        context.addIssue({ code: "custom", message: `has a port outside ${portMin}..65535` });
      return { host: host.replace(/^\[(.*)\]$/, "$1"), port: number };
    });

export const endpoint = endpointFrom(1);
export const listenEndpoint = endpointFrom(0);

const isIpv4 = (host: string) => isIP(host) === 4;

/** An address of the replication link or the clients' network, on which the agents speak IPv4. */
export const ipv4Endpoint = endpoint.refine(
  ({ host }) => isIpv4(host),
  "needs an IPv4 address, such as 198.18.1.1:7400",
);

export const interfaceName = z
  .string()
  .min(1)
  .max(15, "is longer than the 15 characters of an interface name")
  .regex(/^[^\s/]+$/, "must not contain blanks or slashes")
  .meta({ kind: "interface" });
