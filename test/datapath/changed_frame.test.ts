/** TCP frames that are sent otherwise than they lie in the ring: byte for byte what a VM would have sent. */
import { describe, expect, test } from "bun:test";
import { FrameChange } from "../../src/compare/frame_change.ts";
import { parseRecord } from "../../src/compare/parse.ts";
import { ParsedFrame } from "../../src/compare/parsed_frame.ts";
import { ChangedFrames } from "../../src/datapath/changed_frame.ts";
import { RECORD, RECORD_HEADER_BYTES, VNET, VNET_BYTES } from "../../src/ffi/layout.ts";
import { join, option, type SegmentOptions, segment, tcp } from "../bpf/frames.ts";

const RECORD_AT = 128;

interface Offload {
  gsoType?: number;
  gsoBytes?: number;
  /** The checksum is still to be filled in. */
  transport?: number;
  headerBytes?: number;
}

function vnet({ gsoType = 0, gsoBytes = 0, transport = 0, headerBytes = 0 }: Offload): Uint8Array {
  const header = new DataView(new ArrayBuffer(VNET_BYTES));
  header.setUint8(VNET.flags, transport > 0 ? 1 : 0);
  header.setUint8(VNET.gso_type, gsoType);
  header.setUint16(VNET.hdr_len, headerBytes, true);
  header.setUint16(VNET.gso_size, gsoBytes, true);
  header.setUint16(VNET.csum_start, transport, true);
  header.setUint16(VNET.csum_offset, transport > 0 ? 16 : 0, true);
  return new Uint8Array(header.buffer);
}

/** What is sent of a frame when `change` says how; virtio_net_hdr first. */
function changed(
  frame: Uint8Array,
  offload: Offload,
  change: (change: FrameChange, whole: ParsedFrame) => void,
): Uint8Array {
  const bytes = new Uint8Array(RECORD_AT + RECORD_HEADER_BYTES + frame.length + 8);
  const view = new DataView(bytes.buffer);
  view.setUint32(RECORD_AT + RECORD.frame_bytes, frame.length, true);
  bytes.set(vnet(offload), RECORD_AT + RECORD.vnet);
  bytes.set(frame, RECORD_AT + RECORD_HEADER_BYTES);

  const whole = new ParsedFrame();
  parseRecord(bytes, RECORD_AT, whole);
  const wanted = new FrameChange();
  wanted.payload = whole.data;
  wanted.payloadBytes = whole.dataBytes;
  wanted.sequence = whole.sequence;
  wanted.fin = true;
  wanted.acknowledgement = whole.acknowledgement;
  wanted.window = whole.window;
  change(wanted, whole);

  const before = bytes.slice();
  const target = new DataView(new ArrayBuffer(1024), 100);
  const startBytes = new ChangedFrames({ bytes, view }).writeStart(RECORD_AT, wanted, target, 12);
  expect(bytes).toEqual(before);
  return join(
    new Uint8Array(target.buffer, 112, startBytes),
    bytes.subarray(wanted.payload, wanted.payload + wanted.payloadBytes),
  );
}

const bulk = (bytes: number) => new Uint8Array(bytes).map((_, i) => i * 31 + (i >> 8));
const STAMPS = [...option.nop, ...option.nop, ...option.timestamps(7, 9)];
const FORMS: [string, SegmentOptions, number][] = [
  ["IPv4", { version: 4 }, 34],
  ["IPv4 with options of TCP", { version: 4, options: STAMPS }, 34],
  ["IPv6", { version: 6 }, 54],
  ["IPv4 in a VLAN", { version: 4, vlans: [9] }, 38],
  ["IPv6 in two VLANs", { version: 6, vlans: [9, 10], options: STAMPS }, 62],
  [
    "IPv6 with hop-by-hop options",
    { version: 6, ipv6Extensions: { first: 0, bytes: [6, 0, 1, 4, 0, 0, 0, 0] } },
    62,
  ],
];

describe.each(FORMS)("%s", (_name, form, transport) => {
  const headerBytes = transport + 20 + (form.options?.length ?? 0);

  test.each([
    ["", { window: 77 }],
    ["", { acknowledgment: 0x1234_5678 }],
    ["", { window: 0, acknowledgment: 0xffff_ffff }],
    ["without its FIN", { flags: tcp.ACK | tcp.PSH }],
  ])("with other numbers %s %o", (_what, other) => {
    const flags = tcp.ACK | tcp.FIN | tcp.PSH;
    const sent = { ...form, sequence: 5, acknowledgment: 900, window: 501, flags, payload: bulk(101) };
    const apply = (change: FrameChange) => {
      if ("window" in other) change.window = other.window!;
      if ("acknowledgment" in other) change.acknowledgement = other.acknowledgment! | 0;
      change.fin = !("flags" in other);
    };
    expect(changed(segment(sent), {}, apply)).toEqual(join(vnet({}), segment({ ...sent, ...other })));
    const partial = { ...sent, partialChecksum: true };
    const offload = { transport, headerBytes };
    expect(changed(segment(partial), offload, apply)).toEqual(
      join(vnet(offload), segment({ ...partial, ...other })),
    );
  });

  test.each([
    ["the first bytes", 0, 40],
    ["the last bytes", 60, 101],
    ["an odd piece from the middle", 33, 66],
    ["nothing of the payload", 101, 101],
  ])("%s", (_what, from, to) => {
    const sent = { ...form, sequence: 0xffff_fff0, acknowledgment: 900, window: 501, payload: bulk(101) };
    const apply = (change: FrameChange, whole: ParsedFrame) => {
      change.payload = whole.data + from;
      change.payloadBytes = to - from;
      change.sequence = (whole.sequence + from) | 0;
      change.acknowledgement = 800;
      change.window = 400;
    };
    const piece = segment({
      ...sent,
      sequence: (sent.sequence + from) >>> 0,
      acknowledgment: 800,
      window: 400,
      payload: bulk(101).subarray(from, to),
      partialChecksum: true,
    });
    // A whole checksum is left to the kernel too.
    const expected = join(vnet({ transport, headerBytes }), piece);
    expect(changed(segment(sent), {}, apply)).toEqual(expected);
    const partial = segment({ ...sent, partialChecksum: true });
    expect(changed(partial, { transport, headerBytes }, apply)).toEqual(expected);
  });

  test("a part of a frame that is segmented later is segmented if it is long enough", () => {
    const gsoType = form.version === 6 ? 4 : 1;
    const sent = { ...form, sequence: 5, payload: bulk(9_000), partialChecksum: true };
    const part = (bytes: number) => (change: FrameChange) => {
      change.payloadBytes = bytes;
    };
    const offload = { gsoType, gsoBytes: 1400, transport, headerBytes };
    expect(changed(segment(sent), offload, part(1401))).toEqual(
      join(vnet(offload), segment({ ...sent, payload: bulk(1401) })),
    );
    expect(changed(segment(sent), offload, part(1400))).toEqual(
      join(vnet({ transport, headerBytes }), segment({ ...sent, payload: bulk(1400) })),
    );
  });

  test("padding behind the frame is left out", () => {
    const sent = { ...form, payload: bulk(3) };
    const got = changed(join(segment(sent), new Uint8Array(9)), {}, (change) => {
      change.window = 1;
    });
    expect(got).toEqual(join(vnet({}), segment({ ...sent, window: 1 })));
  });
});
