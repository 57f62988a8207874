/** A QMP server that says what a test lets it say, for the real client: no QEMU, no milliseconds of one. */
import { createServer, type Server, type Socket } from "node:net";

const GREETING = { version: { qemu: { major: 11, minor: 1, micro: 0 }, package: "" }, capabilities: ["oob"] };

export class ScriptedQmp {
  /** The commands that have come, in order. */
  readonly commands: string[] = [];
  readonly #sockets = new Set<Socket>();
  readonly #server: Server;

  private constructor(private readonly answer: (command: string) => unknown) {
    this.#server = createServer((socket) => {
      this.#sockets.add(socket);
      socket.on("error", () => undefined);
      this.#send(socket, { QMP: GREETING });
      let text = "";
      socket.on("data", (data) => {
        text += data.toString();
        const lines = text.split("\n");
        text = lines.pop() ?? "";
        for (const line of lines) if (line.trim() !== "") this.#received(socket, line);
      });
    });
  }

  /** `answer`: what a command returns; an Error is QEMU's refusal, undefined an empty object. */
  static async listen(
    path: string,
    answer: (command: string) => unknown = () => undefined,
  ): Promise<ScriptedQmp> {
    const qmp = new ScriptedQmp(answer);
    await new Promise<void>((resolve) => qmp.#server.listen(path, resolve));
    return qmp;
  }

  /** An event, `atMs` milliseconds after a second of the wall clock. */
  emit(event: string, atMs = 0): void {
    const timestamp = { seconds: 1_000, microseconds: atMs * 1_000 };
    for (const socket of this.#sockets) this.#send(socket, { event, data: {}, timestamp });
  }

  /** QEMU is gone. */
  close(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
  }

  #received(socket: Socket, line: string): void {
    const message = JSON.parse(line) as Record<string, unknown>;
    const command = String(message.execute ?? message["exec-oob"]);
    this.commands.push(command);
    const result = this.answer(command) ?? {};
    const { id } = message;
    if (result instanceof Error)
      this.#send(socket, { error: { class: "GenericError", desc: result.message }, id });
    else this.#send(socket, { return: result, id });
  }

  #send(socket: Socket, message: object): void {
    socket.write(`${JSON.stringify(message)}\r\n`);
  }
}
