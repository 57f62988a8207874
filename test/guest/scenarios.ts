/**
 * What the guest's services are asked to do, each from inside the network namespace that the guest's tap is
 * in:
 *
 *   ip netns exec NAMESPACE bun test/guest/scenarios.ts NAME
 *
 * Ends with status 0 if the guest did all of it right, otherwise says what it did wrong.
 */
import { strict as assert } from "node:assert";
import { createHash } from "node:crypto";
import { createSocket } from "node:dgram";
import { GUEST_PORTS } from "../../src/lab/guest_ports.ts";
import { firstWrongByte, patternBytes as pattern } from "../../src/lab/pattern.ts";
import { Stream } from "./stream.ts";

/** Throws if `data` is not the pattern from byte `position` on. */
function checkPattern(data: Buffer, position: number): void {
  const wrong = firstWrongByte(position, data);
  if (wrong >= 0) throw new Error(`byte ${wrong} is ${data[wrong - position]}, which is not the pattern's`);
}

export const guestIp4 = "198.18.0.10";
export const guestIp6 = "2001:2::10";
const hosts = [guestIp4, guestIp6];
const mib = 1024 * 1024;

const port = GUEST_PORTS;

function md5(data: string | Buffer): string {
  return createHash("md5").update(data).digest("hex");
}

async function exchangePattern(host: string, bytes: number, writeBytes: number): Promise<void> {
  const stream = await Stream.open(host, port.duplex);
  const sending = (async () => {
    for (let at = 0; at < bytes; at += writeBytes) {
      await stream.write(pattern(at, Math.min(writeBytes, bytes - at)));
    }
  })();
  let position = 0;
  while (position < bytes) {
    const data = await stream.readSome();
    checkPattern(data, position);
    position += data.length;
  }
  assert.equal(position, bytes, "the guest answers as many bytes as it got");
  await sending;
  stream.socket.end();
  assert.equal((await stream.rest()).length, 0, "nothing comes behind the last byte");
  stream.close();
}

/** Expects the guest to reset the connection; returns what it had sent before that. */
async function expectReset(stream: Stream): Promise<Buffer> {
  const before: Buffer[] = [];
  const failure = await (async () => {
    for (;;) before.push(await stream.readSome());
  })().catch((error: Error & { code?: string }) => error);
  assert.equal(failure.code, "ECONNRESET", `the connection is reset, not closed (${failure.message})`);
  return Buffer.concat(before);
}

async function diskAnswer(stream: Stream, request: string, right: string): Promise<void> {
  assert.equal(await stream.request(request), right);
}

const scenarios: Record<string, () => Promise<void>> = {
  async duplex() {
    for (const host of hosts) await exchangePattern(host, 4 * mib, 65536);
    // Pieces that are no multiple of a counter or of a block.
    await exchangePattern(guestIp4, 100_003, 1009);
    await exchangePattern(guestIp4, 1, 1);
  },

  async "many connections"() {
    await Promise.all(
      Array.from({ length: 200 }, (_, i) => exchangePattern(hosts[i % 2] as string, 3000 + i, 1000)),
    );
  },

  async "wrong byte"() {
    const wrong = pattern(0, 50_000);
    wrong[40_001]! ^= 1;
    const duplex = await Stream.open(guestIp4, port.duplex);
    await duplex.write(wrong);
    const answer = await expectReset(duplex);
    assert.ok(answer.length <= 40_001, `${answer.length} bytes answered, the wrong one was byte 40001`);
    checkPattern(answer, 0);

    const sink = await Stream.open(guestIp6, port.sink);
    await sink.write("50000\n");
    await sink.write(wrong);
    assert.equal((await expectReset(sink)).length, 0);

    // The services go on.
    await exchangePattern(guestIp6, 1000, 100);
  },

  async "not a request"() {
    for (const [service, request] of [
      [port.source, "-1\n"],
      [port.sink, "ten\n"],
      [port.disk, "x".repeat(10_000)],
    ] as const) {
      const stream = await Stream.open(guestIp4, service);
      await stream.write(request);
      assert.equal((await stream.rest()).toString("latin1"), "ERROR not a request\n");
      stream.close();
    }
  },

  async source() {
    for (const host of hosts) {
      const stream = await Stream.open(host, port.source);
      let position = 0;
      for (const bytes of [1, 7, 32_768, 8 * mib, 3]) {
        await stream.write(`${bytes}\n`);
        checkPattern(await stream.read(bytes), position);
        position += bytes;
      }
      // Several requests at once are answered in order.
      await stream.write("10\n0\n20\n");
      checkPattern(await stream.read(30), position);
      stream.socket.end();
      assert.equal((await stream.rest()).length, 0);
    }
  },

  async sink() {
    for (const host of hosts) {
      const stream = await Stream.open(host, port.sink);
      let position = 0;
      for (const bytes of [5, 40_000, 8 * mib]) {
        await stream.write(`${bytes}\n`);
        await stream.write(pattern(position, bytes));
        assert.equal(await stream.line(), `OK ${bytes}`);
        position += bytes;
      }
      await stream.write(
        Buffer.concat([
          Buffer.from("9\n"),
          pattern(position, 9),
          Buffer.from("0\n1\n"),
          pattern(position + 9, 1),
        ]),
      );
      for (const bytes of [9, 0, 1]) assert.equal(await stream.line(), `OK ${bytes}`);
      stream.close();
    }
  },

  async random() {
    const seen = new Set<string>();
    for (const host of hosts) {
      const stream = await Stream.open(host, port.random);
      let chain = "";
      const check = (line: string) => {
        const [random = "", sum] = line.split(" ");
        assert.match(random, /^[0-9a-f]{64}$/);
        chain = md5(chain + random);
        assert.equal(sum, chain);
        assert.ok(!seen.has(random), "no value comes twice");
        seen.add(random);
      };
      for (let i = 0; i < 20; i++) check(await stream.request("next"));
      await stream.write("BULK 1000\nlast\n");
      for (let i = 0; i < 1001; i++) check(await stream.line());
      stream.close();
    }
  },

  async disk() {
    const content = (n: number) => {
      const block = Buffer.alloc(4096);
      for (let i = 0; i < 512; i++) block.writeBigUInt64BE(BigInt(n * 512 + i), 8 * i);
      return block;
    };
    for (const host of hosts) {
      const stream = await Stream.open(host, port.disk);
      const bytes = Number((await stream.request("SIZE")).split(" ")[1]);
      assert.equal(bytes, 16 * mib);
      for (const n of [0, 3, bytes / 4096 - 1]) {
        await diskAnswer(stream, `WRITE ${n}`, `ACK ${n}`);
        await diskAnswer(stream, `READ ${n}`, `BLOCK ${n} ${md5(content(n))}`);
      }
      await diskAnswer(stream, "READ 1", `BLOCK 1 ${md5(Buffer.alloc(4096))}`);
      await diskAnswer(stream, `WRITE ${bytes / 4096}`, "ERROR beyond the end of the disk");
      await diskAnswer(stream, "FORMAT", "ERROR unknown command");
      stream.close();
    }
  },

  async echo() {
    for (const host of hosts) {
      const socket = createSocket(host.includes(":") ? "udp6" : "udp4");
      await new Promise<void>((resolve) => socket.connect(port.echo, host, () => resolve()));
      // The largest one travels in fragments. UDP may lose a datagram, so one that does not come back is sent
      // again.
      for (const bytes of [0, 1, 100, 1472, 8000]) {
        const payload = pattern(bytes, bytes);
        const back = await new Promise<Buffer>((resolve) => {
          const again = setInterval(() => socket.send(payload), 500);
          const received = (data: Buffer) => {
            if (data.length !== bytes) return;
            clearInterval(again);
            socket.off("message", received);
            resolve(data);
          };
          socket.on("message", received);
          socket.send(payload);
        });
        assert.ok(back.equals(payload));
      }
      socket.close();
    }
  },

  async "dirty 96 MiB"() {
    const stream = await Stream.open(guestIp4, port.memory);
    assert.equal(await stream.request("DIRTY 96"), "DONE");
    assert.match(await stream.request("DIRTY 100000"), /^ERROR at most \d+ MiB$/);
    stream.close();
  },

  async "dirty rate 24 MiB/s"() {
    const stream = await Stream.open(guestIp6, port.memory);
    assert.equal(await stream.request("DIRTYRATE 24"), "DONE");
    stream.close();
  },

  async "dirty rate 0"() {
    const stream = await Stream.open(guestIp6, port.memory);
    assert.equal(await stream.request("DIRTYRATE 0"), "DONE");
    stream.close();
  },

  async http() {
    for (const host of [guestIp4, `[${guestIp6}]`]) {
      const get = (path: string) => fetch(`http://${host}${path}`);
      const home = await get("/");
      assert.equal(home.status, 200);
      assert.match(await home.text(), /It works/);
      assert.equal(home.headers.get("date"), null);
      for (const bytes of [0, 1, 2 * mib]) {
        const body = Buffer.from(await (await get(`/size/${bytes}`)).arrayBuffer());
        assert.equal(body.length, bytes);
        checkPattern(body, 0);
      }
      assert.notEqual(await (await get("/random")).text(), await (await get("/random")).text());
      assert.match(await (await get("/time")).text(), /^\d+\.\d{6}\n$/);
      assert.equal((await get("/nothing")).status, 404);
    }

    // Requests sent together on one connection, and the end of it when the client asks for that.
    const stream = await Stream.open(guestIp4, port.http);
    const head = "Host: guest\r\n\r\n";
    await stream.write(
      `GET /size/5 HTTP/1.1\r\n${head}HEAD /size/9 HTTP/1.1\r\n${head}GET /x HTTP/1.1\r\nConnection: ` +
        `close\r\n${head}`,
    );
    assert.equal(
      (await stream.rest()).toString("latin1"),
      "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0" +
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 9\r\n\r\n" +
        "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 13\r\nConnection: " +
        "close\r\n\r\nno such page\n",
    );
    stream.close();
  },

  async "power off"() {
    const stream = await Stream.open(guestIp4, port.memory);
    await stream.write("POWEROFF\n");
  },
};

if (import.meta.main) {
  const name = process.argv[2] ?? "";
  try {
    const scenario = scenarios[name];
    assert.ok(scenario !== undefined, `there is no scenario "${name}"`);
    await scenario();
    process.exit(0);
  } catch (error) {
    console.error(error instanceof Error ? (error.stack ?? error.message) : error);
    process.exit(1);
  }
}
