/**
 * One end of a TCP connection in a namespace, ends with the connection: bun peers.ts client, bun peers.ts
 * server CHANGED_BYTE (-1 for none). And one datagram that nobody answers: bun peers.ts mark.
 */
import { createSocket } from "node:dgram";
import { connect, createServer, type Socket } from "node:net";
import { flipped, pattern } from "./conversation.ts";

export const ADDRESSES = { server: "198.18.0.2", client: "198.18.0.9" } as const;
export const PORTS = { server: 8080, client: 40_000 } as const;
/** A multicast group that has no members. */
const NOBODY = "239.1.1.1";
export const END_MARK = "end of the capture";
export const UPLOAD_BYTES = 200_000;
export const ANSWER_BYTES = 1_500_000;

/** Calls back once this many bytes have come. */
function received(socket: Socket, bytes: number, then: () => void): void {
  let missing = bytes;
  socket.on("data", (data) => {
    missing -= data.length;
    if (missing === 0) then();
  });
}

function serve(changed: number): void {
  const answer = pattern(ANSWER_BYTES, 1);
  const server = createServer((socket) => {
    server.close();
    received(socket, UPLOAD_BYTES, () => socket.end(changed < 0 ? answer : flipped(answer, changed)));
  });
  server.listen(PORTS.server, ADDRESSES.server, () => process.stdout.write("listening\n"));
}

function ask(): void {
  const socket = connect({
    host: ADDRESSES.server,
    port: PORTS.server,
    localAddress: ADDRESSES.client,
    localPort: PORTS.client,
  });
  received(socket, ANSWER_BYTES, () => socket.end());
  socket.write(pattern(UPLOAD_BYTES, 2));
}

function mark(): void {
  const socket = createSocket("udp4");
  socket.bind(PORTS.server, ADDRESSES.server, () => {
    socket.send(END_MARK, PORTS.server, NOBODY, () => socket.close());
  });
}

if (import.meta.main) {
  const [, , role, changed] = process.argv;
  if (role === "server") serve(Number(changed));
  else if (role === "client") ask();
  else mark();
}
