/**
 * A sequence: what the two VMs send and when checkpoints complete, step by step, together with what only
 * the one who made it can know: which connection and which places of its stream a segment really belongs
 * to.
 */
export type Side = "primary" | "secondary";

/** Values of the places in a stream that are no bytes. */
export const SYN_VALUE = 1000;
export const FIN_VALUE = 1001;

export interface TcpContent {
  kind: "tcp";
  flow: number;
  /** Connections that use the same ports, one after the other. */
  connection: number;
  /** Places in the stream: 0 is the SYN, then the bytes, then the FIN. The segment has [from, to). */
  from: number;
  to: number;
  /** One for each place: a byte, SYN_VALUE or FIN_VALUE. */
  values: number[];
  /** Places of the client's stream that are acknowledged; undefined without the ACK flag. */
  received: number | undefined;
  reset: boolean;
  /** What a SYN offers. */
  options?: string;
}

export interface DatagramContent {
  kind: "datagram";
  flow: number;
  /** All that the receiver will see of the datagram. */
  payload: string;
  /**
   * If the frame is a fragment: which bytes of which of its side's datagrams, and how many there are of it.
   */
  fragment?: { datagram: number; from: number; to: number; of: number };
}

export type Content = TcpContent | DatagramContent;

export interface FrameStep {
  side: Side;
  frame: Uint8Array;
  content: Content;
}

interface CheckpointStep {
  side: "checkpoint";
}

export type Step = FrameStep | CheckpointStep;

/** One line for each step, to be read by people. Primary frames carry their slot numbers. */
export function describeSteps(steps: readonly Step[]): string {
  let slots = 0;
  const lines = steps.map((step, at) => {
    if (step.side === "checkpoint") return `${at}: checkpoint`;
    const name = step.side === "primary" ? `primary #${slots++}` : "secondary";
    return `${at}: ${name} ${describeContent(step.content)} ${describeBytes(step.frame)}`;
  });
  return lines.join("\n");
}

function describeContent(content: Content): string {
  if (content.kind === "datagram") {
    const { fragment } = content;
    const part = fragment === undefined ? "" : ` [${fragment.from}, ${fragment.to}) of ${fragment.of}`;
    return `flow ${content.flow} datagram ${JSON.stringify(content.payload)}${part}`;
  }
  const { flow, connection, from, to, values, received, reset } = content;
  const names = [
    values.includes(SYN_VALUE) ? "SYN" : "",
    values.includes(FIN_VALUE) ? "FIN" : "",
    reset ? "RST" : "",
    received === undefined ? "" : `ACK ${received}`,
  ];
  return `flow ${flow} connection ${connection} [${from}, ${to}) ${names.filter(Boolean).join(" ")}`;
}

function describeBytes(frame: Uint8Array): string {
  const hex = Buffer.from(frame).toString("hex");
  return hex.length <= 160 ? hex : `${hex.slice(0, 160)}… (${frame.length} bytes)`;
}
