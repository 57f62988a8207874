/** [[vm.disk]]: a disk that protection mirrors, and QEMU's block nodes of it. */
import { z } from "zod";
import { managedDiskFields } from "./qemu.ts";

/** Node names of QEMU have at most 31 characters. */
const nodeName = z.string().min(1).max(31, "is longer than the 31 characters of a node name");

const disk = z
  .strictObject({
    name: z
      .string()
      .regex(/^[a-z0-9][a-z0-9-]{0,15}$/, "must be 1-16 of a-z, 0-9 and -")
      .optional()
      .meta({
        description: "Name of the disk.",
        kind: "1-16 of a-z 0-9 -",
        otherwise: "`disk0`, `disk1`, … by position",
      }),
    quorum_node: nodeName
      .optional()
      .meta({ description: "The quorum node under the VM's device.", otherwise: "`colo-NAME`" }),
    export_node: nodeName.optional().meta({
      description: "The node of the image, which a secondary exports over NBD.",
      otherwise: "`NAME`",
    }),
    ...managedDiskFields,
  })
  .describe(
    "One table for each disk, with the same values on both hosts ([storage.md](storage.md)). No table: a " +
      "VM without a disk to replicate.",
  );

/** With the names filled in, by position. */
export const disks = z
  .array(disk, { error: "needs a [[vm.disk]] table for each disk, and none for a VM without a disk" })
  .default([])
  .transform((list) =>
    list.map(({ name, quorum_node, export_node, ...rest }, index) => {
      const named = name ?? `disk${index}`;
      return {
        ...rest,
        name: named,
        quorum_node: quorum_node ?? `colo-${named}`,
        export_node: export_node ?? named,
      };
    }),
  )
  .superRefine((list, context) => {
    const seen = new Set<string>();
    for (const one of list) {
      const names = [`disk ${one.name}`, ...Object.values(nodesOf(one)).map((node) => `node ${node}`)];
      for (const what of names) {
        if (seen.has(what)) context.addIssue({ code: "custom", message: `two disks use the same ${what}` });
        seen.add(what);
      }
    }
  });

/** QEMU's nodes of a disk: the permanent ones, and the ones that protection adds. */
export function nodesOf(one: { name: string; quorum_node: string; export_node: string }): {
  quorum: string;
  base: string;
  replication: string;
  nbd: string;
} {
  return {
    quorum: one.quorum_node,
    base: one.export_node,
    replication: `colo-replica-${one.name}`,
    nbd: `colo-nbd-${one.name}`,
  };
}
