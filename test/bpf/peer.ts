/**
 * A deterministic program for one end of real TCP connections, run by a test in a namespace and told what to
 * do line by line:
 *
 *   listen PORT         serve on all addresses
 *   connect HOST PORT   connect; answers "connected"
 *   get BYTES           ask the other side for that many bytes, in pieces; answers "got BYTES" if they are
 *                       right
 *   put BYTES           send that many, in pieces; answers "put BYTES" if the other side's sums of them are
 *                       right
 *   close               close; answers "closed" when the other side has, too
 */
import type { Socket } from "bun";

const HEADER_BYTES = 5;
const GET = 1;
const PUT = 2;

/**
 * Less than any kernel's first receive window, and the next piece waits until this one has been dealt with.
 * Two VMs that read at different speed offer different windows, the client follows the primary's, and a
 * secondary drops what does not fit its own (BeyondWindow in its netstat): that costs a checkpoint, which
 * these tests do not have.
 */
const PIECE_BYTES = 30_000;

/** The byte at a place of a connection's stream. */
const pattern = (at: number) => (at * 7 + (at >> 8) * 3 + (at >> 16)) & 255;
const slice = (from: number, bytes: number) =>
  Buffer.from(Uint8Array.from({ length: bytes }, (_, i) => pattern(from + i)));

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Sends all of something, however little the socket takes at a time. */
class Sender {
  #waiting: Buffer[] = [];

  send(socket: Socket<unknown>, bytes: Buffer): void {
    this.#waiting.push(bytes);
    this.drain(socket);
  }

  drain(socket: Socket<unknown>): void {
    while (this.#waiting.length > 0) {
      const sent = socket.write(this.#waiting[0]);
      if (sent < this.#waiting[0].length) {
        this.#waiting[0] = this.#waiting[0].subarray(Math.max(sent, 0));
        return;
      }
      this.#waiting.shift();
    }
  }
}

interface Serving {
  sender: Sender;
  header: number[];
  sent: number;
  putLeft: number;
  sum: number;
}

function serve(port: number): void {
  Bun.listen<Serving>({
    hostname: "::",
    port,
    socket: {
      open(socket) {
        socket.data = { sender: new Sender(), header: [], sent: 0, putLeft: 0, sum: 0 };
      },
      data(socket, bytes) {
        const state = socket.data;
        for (const byte of bytes) {
          if (state.putLeft > 0) {
            state.sum = (state.sum + byte) >>> 0;
            if (--state.putLeft === 0) {
              const answer = Buffer.alloc(4);
              answer.writeUInt32BE(state.sum);
              state.sender.send(socket, answer);
            }
            continue;
          }
          state.header.push(byte);
          if (state.header.length < HEADER_BYTES) continue;
          const count = Buffer.from(state.header).readUInt32BE(1);
          if (state.header[0] === GET) {
            state.sender.send(socket, slice(state.sent, count));
            state.sent += count;
          } else {
            state.putLeft = count;
            state.sum = 0;
          }
          state.header = [];
        }
      },
      drain(socket) {
        socket.data.sender.drain(socket);
      },
    },
  });
  say("listening");
}

const client = {
  socket: undefined as Socket<unknown> | undefined,
  sender: new Sender(),
  /** What the command is, how many bytes it is about, and how many of them are left. */
  kind: GET as typeof GET | typeof PUT,
  total: 0,
  left: 0,
  /** The piece under way: what is expected, what has come, and what a sum has to be. */
  want: 0,
  got: [] as number[],
  putSum: 0,
  /** Place in the stream of the next byte that the other side sends of its pattern. */
  received: 0,
};

function request(kind: number, count: number): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  header[0] = kind;
  header.writeUInt32BE(count, 1);
  return header;
}

function begin(kind: typeof GET | typeof PUT, total: number): void {
  client.kind = kind;
  client.total = total;
  client.left = total;
  nextPiece();
}

function nextPiece(): void {
  const count = Math.min(client.left, PIECE_BYTES);
  client.left -= count;
  client.got = [];
  if (client.kind === GET) {
    client.want = count;
    client.sender.send(client.socket!, request(GET, count));
    return;
  }
  const bytes = slice(client.left, count);
  client.want = 4;
  client.putSum = bytes.reduce((sum, byte) => (sum + byte) >>> 0, 0);
  client.sender.send(client.socket!, Buffer.concat([request(PUT, count), bytes]));
}

function arrived(bytes: Buffer): void {
  for (const byte of bytes) client.got.push(byte);
  if (client.got.length < client.want) return;
  const got = Buffer.from(client.got);
  if (client.kind === PUT && got.readUInt32BE(0) !== client.putSum) say("wrong sum");
  else if (client.kind === GET && !got.equals(slice(client.received, client.want))) say("wrong bytes");
  else {
    if (client.kind === GET) client.received += client.want;
    if (client.left > 0) nextPiece();
    else say(`${client.kind === GET ? "got" : "put"} ${client.total}`);
  }
}

async function obey(line: string): Promise<void> {
  const [command, ...words] = line.split(" ");
  const count = Number(words[0]);
  switch (command) {
    case "listen":
      serve(count);
      break;
    case "connect":
      client.socket = await Bun.connect({
        hostname: words[0],
        port: Number(words[1]),
        socket: {
          data: (_socket, bytes) => arrived(bytes),
          drain: (socket) => client.sender.drain(socket),
          close: () => say("closed"),
          error: (_socket, error) => say(`error ${error.message}`),
        },
      });
      say("connected");
      break;
    case "get":
      begin(GET, count);
      break;
    case "put":
      begin(PUT, count);
      break;
    case "close":
      client.socket!.end();
      break;
    default:
      say(`unknown command ${command}`);
  }
}

for await (const line of console) {
  obey(line).catch((error: Error) => say(`error ${error.message}`));
}
