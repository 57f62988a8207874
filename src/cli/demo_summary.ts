/** What `colo-agent demo` prints of the losses that the VM went through. */
import Table from "cli-table3";
import pc from "picocolors";
import type { LossResult } from "../lab/scenario.ts";

/** The client has noticed nothing but a pause. */
export const isUnharmed = ({ connection }: LossResult): boolean =>
  connection.wrongBytes === 0 && connection.reconnects === 0;

export function verdict(result: LossResult): string {
  const { bytesReceived, wrongBytes, reconnects } = result.connection;
  const mb = (bytesReceived / 1e6).toFixed(1);
  if (!isUnharmed(result)) return `${mb} MB came back, ${wrongBytes} bytes wrong, ${reconnects} reconnects`;
  const blocks = `${result.disk.verifiedBlocks} acknowledged blocks on the survivor's disk`;
  return `${mb} MB checked each way, ${blocks}`;
}

export function summary(results: readonly LossResult[]): string {
  const table = new Table({
    head: [
      "lost",
      "survivor",
      "longest gap",
      "bytes each way",
      "wrong bytes",
      "reconnects",
      "blocks acked = found",
      "checkpoints",
    ],
    style: { head: [], border: [] },
  });
  for (const { loss, survivor, connection, disk, checkpoints } of results) {
    table.push([
      loss,
      `host ${survivor}`,
      `${Math.round(connection.longestGapMs)} ms`,
      connection.bytesReceived,
      connection.wrongBytes,
      connection.reconnects,
      `${disk.acknowledgedBlocks} = ${disk.verifiedBlocks}`,
      Object.values(checkpoints).reduce((sum, count) => sum + count, 0),
    ]);
  }
  const line = results.every(isUnharmed)
    ? pc.green(
        "Every connection survived, every byte was checked, " +
          "every acknowledged block is on the survivor's disk.",
      )
    : pc.red("A client received wrong bytes or lost its connection.");
  return `\n${table.toString()}\n${line}\n`;
}
