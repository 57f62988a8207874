/**
 * A TCP connection between guest and client as frames, with the numbers and the segmentation that the test
 * wants.
 */
import {
  ACK,
  CLIENT,
  CLIENT6,
  FIN,
  GUEST,
  GUEST6,
  SYN,
  synOptions,
  type TcpOptions,
  tcp,
} from "../compare/frames.ts";

export interface ConversationOptions extends TcpOptions {
  guestIsn?: number;
  clientIsn?: number;
  guestPort?: number;
  clientPort?: number;
  segmentBytes?: number;
}

export class Conversation {
  readonly frames: Uint8Array[] = [];
  /** Next sequence number of each end. */
  guestNext: number;
  clientNext: number;
  readonly segmentBytes: number;
  private readonly options: ConversationOptions;

  constructor(options: ConversationOptions = {}) {
    const { guestIsn = 1000, clientIsn = 77_000, segmentBytes = 100 } = options;
    this.options = options;
    this.guestNext = guestIsn;
    this.clientNext = clientIsn;
    this.segmentBytes = segmentBytes;
  }

  /** The client opens the connection: 3 frames. */
  open(): this {
    this.fromClient({ flags: SYN, options: synOptions(1460, 7) });
    this.clientNext = (this.clientNext + 1) >>> 0;
    this.fromGuest({ flags: SYN, ack: this.clientNext, options: synOptions(1460, 7) });
    this.guestNext = (this.guestNext + 1) >>> 0;
    return this.acknowledge("client");
  }

  /** The guest sends these bytes, cut into segments; the client acknowledges each. */
  guest(data: Uint8Array, segmentBytes = this.segmentBytes): this {
    for (let at = 0; at < data.length; at += segmentBytes) {
      const payload = data.subarray(at, at + segmentBytes);
      this.fromGuest({ ack: this.clientNext, payload });
      this.guestNext = (this.guestNext + payload.length) >>> 0;
      this.acknowledge("client");
    }
    return this;
  }

  client(data: Uint8Array, segmentBytes = this.segmentBytes): this {
    for (let at = 0; at < data.length; at += segmentBytes) {
      const payload = data.subarray(at, at + segmentBytes);
      this.fromClient({ ack: this.guestNext, payload });
      this.clientNext = (this.clientNext + payload.length) >>> 0;
      this.acknowledge("guest");
    }
    return this;
  }

  /** Both ends say FIN: 3 frames. */
  close(): this {
    this.fromGuest({ ack: this.clientNext, flags: FIN });
    this.guestNext = (this.guestNext + 1) >>> 0;
    this.fromClient({ ack: this.guestNext, flags: FIN });
    this.clientNext = (this.clientNext + 1) >>> 0;
    return this.acknowledge("guest");
  }

  acknowledge(end: "guest" | "client"): this {
    if (end === "guest") this.fromGuest({ ack: this.clientNext, flags: ACK });
    else this.fromClient({ ack: this.guestNext, flags: ACK });
    return this;
  }

  fromGuest(segment: TcpOptions): void {
    const { guestPort = 80, clientPort = 40_000 } = this.options;
    const ports = { sourcePort: guestPort, destinationPort: clientPort };
    this.frames.push(tcp({ seq: this.guestNext, ...this.common(), ...segment, ...ports }));
  }

  fromClient(segment: TcpOptions): void {
    const { guestPort = 80, clientPort = 40_000 } = this.options;
    const { source4 = GUEST, destination4 = CLIENT, source6 = GUEST6, destination6 = CLIENT6 } = this.options;
    const ports = { sourcePort: clientPort, destinationPort: guestPort };
    const addresses = {
      source4: destination4,
      destination4: source4,
      source6: destination6,
      destination6: source6,
    };
    this.frames.push(tcp({ seq: this.clientNext, ...this.common(), ...segment, ...addresses, ...ports }));
  }

  private common(): TcpOptions {
    const { guestIsn, clientIsn, guestPort, clientPort, segmentBytes, ...rest } = this.options;
    return rest;
  }
}

/** `length` bytes that do not repeat at any short distance: a xorshift generator. */
export function pattern(length: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = Math.imul(seed, 0x9e3779b1) | 1;
  for (let i = 0; i < length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[i] = state & 0xff;
  }
  return bytes;
}

/** A copy with one byte changed. */
export function flipped(bytes: Uint8Array, at: number): Uint8Array {
  const copy = bytes.slice();
  copy[at]! ^= 0x20;
  return copy;
}
