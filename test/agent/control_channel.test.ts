/** The channel between two agents, where one of them is an agent that was restarted. */
import { afterEach, expect, test } from "bun:test";
import { connect, type Socket } from "node:net";
import { PeerServer } from "../../src/agent/control_channel.ts";
import { createLogger } from "../../src/host/log.ts";

const ENDPOINT = { host: "127.0.0.1", port: 17_412 };

let server: PeerServer | undefined;
const sockets: Socket[] = [];
afterEach(() => {
  server?.close();
  for (const socket of sockets.splice(0)) socket.destroy();
});

function dial(): Promise<Socket> {
  const { promise, resolve, reject } = Promise.withResolvers<Socket>();
  const socket = connect({ ...ENDPOINT, localAddress: ENDPOINT.host }, () => resolve(socket));
  socket.once("error", reject);
  sockets.push(socket);
  return promise;
}

test("what an earlier life of the peer asks for is not done once a later one is there", async () => {
  const asked: string[] = [];
  server = new PeerServer(
    ENDPOINT,
    ENDPOINT.host,
    (type) => {
      asked.push(type);
      return {};
    },
    createLogger("error"),
  );
  await server.listen();
  const answer = (socket: Socket) => new Promise((resolve) => socket.once("data", resolve));

  const earlier = await dial();
  earlier.write('{"id":1,"type":"first","body":{}}\n');
  await answer(earlier);
  const closed = new Promise((resolve) => earlier.once("close", resolve));
  // Somebody who only looks whether an agent is there ends nothing.
  const looking = await dial();
  looking.write('{"id":1,"type":"look","body":{}}\n');
  await answer(looking);
  const later = await dial();
  later.write('{"id":0,"type":"begin","body":{}}\n{"id":1,"type":"second","body":{}}\n');
  await answer(later);
  earlier.write('{"id":2,"type":"too late","body":{}}\n');
  await closed;
  later.write('{"id":2,"type":"third","body":{}}\n');
  await answer(later);
  expect(asked).toEqual(["first", "look", "second", "third"]);
});
