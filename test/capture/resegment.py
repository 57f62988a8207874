"""Writes captures as another machine would have sent them: every TCP direction gets another initial sequence
number (acknowledgements follow), and its payload is cut into other segments. Scapy reads, builds and writes
the frames.

Standard input: a JSON array of {"in": path, "out": path, "seed": number, "flip": number from 0 to 1 or null}.
With "flip" one byte is changed in every segment that carries it: the one that far into all the TCP payload of
the capture.
Standard output: a JSON array of {"segments": frames with payload written, "bytes": distinct payload bytes,
"flipped": null or {"source": [address, port], "destination": [address, port], "offset": bytes of the stream
in front of it}}.
"""

import json
import logging
import random
import sys

logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.layers.inet import IP, TCP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402
from scapy.layers.l2 import Loopback  # noqa: E402
from scapy.packet import bind_layers  # noqa: E402
from scapy.utils import PcapReader, PcapWriter  # noqa: E402

# AF_INET6 of macOS, which Scapy does not know.
bind_layers(Loopback, IPv6, type=30)

MODULUS = 1 << 32
MERGED_BYTES_MAX = 9000
SEGMENT_BYTES_MAX = 1400


def network(frame):
    """The frame's IP layer if it carries a whole TCP segment, else None."""
    layer = frame.getlayer(IP) or frame.getlayer(IPv6)
    if layer is None or not isinstance(layer.payload, TCP):
        return None
    return layer


def ends(layer):
    return (layer.src, layer.payload.sport), (layer.dst, layer.payload.dport)


def payload_of(layer):
    """Without the padding of a short Ethernet frame."""
    tcp = layer.payload
    if isinstance(layer, IP):
        length = layer.len - layer.ihl * 4 - tcp.dataofs * 4
    else:
        length = layer.plen - tcp.dataofs * 4
    return bytes(tcp.payload)[:length]


def read(path):
    with PcapReader(path) as reader:
        return list(reader)


class Streams:
    """First payload byte and distinct bytes of each direction."""

    def __init__(self, frames):
        self.first = {}
        self.bytes = {}
        for frame in frames:
            layer = network(frame)
            if layer is None:
                continue
            key = ends(layer)
            syn = "S" in layer.payload.flags
            self.first.setdefault(key, (layer.payload.seq + syn) % MODULUS)
            for i in range(len(payload_of(layer))):
                offset = (layer.payload.seq + syn + i - self.first[key]) % MODULUS
                self.bytes.setdefault(key, set()).add(offset)

    def total(self):
        return sum(len(offsets) for offsets in self.bytes.values())

    def pick(self, share):
        """The byte that far into all of them."""
        index = min(int(share * self.total()), self.total() - 1)
        for key, offsets in self.bytes.items():
            if index < len(offsets):
                return key, sorted(offsets)[index]
            index -= len(offsets)
        raise ValueError("no TCP payload")


def flip(frames, streams, key, offset):
    position = (streams.first[key] + offset) % MODULUS
    for frame in frames:
        layer = network(frame)
        if layer is None or ends(layer) != key:
            continue
        data = bytearray(payload_of(layer))
        at = (position - layer.payload.seq - ("S" in layer.payload.flags)) % MODULUS
        if at < len(data):
            data[at] ^= 0x01
            layer.payload.remove_payload()
            layer.payload.add_payload(bytes(data))


def merged(frames):
    """Neighbouring segments of one direction that join become one."""
    out = []
    for frame in frames:
        layer = network(frame)
        previous = network(out[-1]) if out else None
        if layer is not None and previous is not None and ends(layer) == ends(previous):
            data, before = payload_of(layer), payload_of(previous)
            joins = layer.payload.seq == (previous.payload.seq + len(before)) % MODULUS
            plain = not set("SFR") & set(str(previous.payload.flags)) and "S" not in layer.payload.flags
            if data and before and joins and plain and len(data) + len(before) <= MERGED_BYTES_MAX:
                previous.payload.flags |= layer.payload.flags
                previous.payload.ack = layer.payload.ack
                previous.payload.remove_payload()
                previous.payload.add_payload(before + data)
                previous.len = previous.plen = None
                set_lengths(previous, before + data)
                continue
        out.append(frame)
    return out


def set_lengths(layer, data):
    """The lengths that payload_of() reads."""
    size = len(data) + layer.payload.dataofs * 4
    if isinstance(layer, IP):
        layer.len = size + layer.ihl * 4
    else:
        layer.plen = size


def cut(frame, rng):
    """The frame as one or more that carry the same bytes."""
    layer = network(frame)
    data = payload_of(layer)
    if len(data) < 2 or "S" in layer.payload.flags:
        return [frame]
    pieces = []
    at = 0
    while at < len(data):
        size = rng.randint(1, min(SEGMENT_BYTES_MAX, len(data)))
        piece = frame.copy()
        inner = network(piece)
        chunk = data[at : at + size]
        inner.payload.seq = (inner.payload.seq + at) % MODULUS
        if at + size < len(data):
            inner.payload.flags = str(inner.payload.flags).replace("F", "").replace("P", "")
        inner.payload.remove_payload()
        inner.payload.add_payload(chunk)
        set_lengths(inner, chunk)
        pieces.append(piece)
        at += size
    return pieces


def renumber(frame, shifts, rng):
    layer = network(frame)
    tcp = layer.payload
    source, destination = ends(layer)
    own = shifts.setdefault((source, destination), rng.randrange(1 << 24, MODULUS - (1 << 24)))
    other = shifts.setdefault((destination, source), rng.randrange(1 << 24, MODULUS - (1 << 24)))
    tcp.seq = (tcp.seq + own) % MODULUS
    if "A" in tcp.flags:
        tcp.ack = (tcp.ack + other) % MODULUS
    # Scapy computes them anew.
    tcp.chksum = None
    if isinstance(layer, IP):
        layer.chksum = None


def run(job):
    rng = random.Random(job["seed"])
    frames = read(job["in"])
    streams = Streams(frames)
    flipped = None
    if job["flip"] is not None:
        key, offset = streams.pick(job["flip"])
        flip(frames, streams, key, offset)
        flipped = {"source": key[0], "destination": key[1], "offset": offset}
    shifts = {}
    segments = 0
    writer = PcapWriter(job["out"])
    for frame in merged(frames):
        if network(frame) is None:
            writer.write(frame)
            continue
        for piece in cut(frame, rng):
            segments += 1 if payload_of(network(piece)) else 0
            renumber(piece, shifts, rng)
            piece.wirelen = None
            writer.write(piece)
    writer.close()
    return {"segments": segments, "bytes": streams.total(), "flipped": flipped}


json.dump([run(job) for job in json.load(sys.stdin)], sys.stdout)
