#!/usr/bin/env python3
"""Writes the initial inputs of each target to seeds/: structures that a fuzzer would take long to
find. Running it again writes the same files."""

import pathlib
import struct

SEEDS = pathlib.Path(__file__).parent / "seeds"

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)


def frame(flags, body):
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | 2]) + struct.pack(">Q", len(body)) + body


def ready(socket_type, identity=b""):
    body = b"\x05READY"
    for name, value in ((b"Socket-Type", socket_type), (b"Identity", identity)):
        body += bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
    return frame(4, body)


PING = frame(4, b"\x04PING\x00\x00context")
PONG = frame(4, b"\x04PONGcontext")
ERROR = frame(4, b"\x05ERROR\x02no")
MESSAGES = frame(1, b"") + frame(0, b"hello") + frame(0, bytes(300)) + frame(2, b"long form")
BROKEN = {
    "flags": b"\x08",
    "command": frame(4, b"\x09SUBSCRIBE"),
    "error": ERROR,
    "huge": b"\x02" + b"\xff" * 8,
    "frames": frame(1, b"") * 70,
    "half": b"\x00\x20half",
    "pings": frame(1, b"a") + PING * 30 + frame(0, b"b"),
}


def write(target, name, data):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


# Format: the limits, the number of cuts, the cuts, the stream.
for limits in range(4):
    write("decoder", f"valid-{limits}", bytes([limits, 2, 0, 6, 40]) + MESSAGES + PING + PONG + MESSAGES)
for name, end in BROKEN.items():
    write("decoder", name, b"\x02\x01\x03\xff" + MESSAGES + end)
# A message at the limit does not count towards the next one, and one byte more exceeds the limit.
for choice, limit in ((1, 100), (2, 600)):
    largest = frame(0, bytes(limit))
    write("decoder", f"limit-{limit}", bytes([choice, 0, 200]) + largest * 3)
    write("decoder", f"over-{limit}", bytes([choice, 0, 200]) + largest + frame(0, bytes(limit + 1)))

# Format: one byte for the limits, the role and whether the greeting is included; then the number of
# cuts, the cuts, the stream.
for role, name_of in ((0, "{}"), (4, "{}-connecting")):
    def handshake(name, greeted, rest):
        write("handshake", name_of.format(name), bytes([(11 if greeted else 1) | role]) + rest)

    for kind in (b"REQ", b"REP", b"DEALER", b"ROUTER", b"PUB"):
        name = kind.decode().lower()
        handshake(name, False, b"\x01\x3f\x05" + GREETING + ready(kind, b"identity") + MESSAGES)
        handshake(f"{name}-greeted", True, b"\x00\x02" + ready(kind))
    handshake("long-identity", True, b"\x00\xff" + ready(b"DEALER", b"i" * 256))
    handshake("zero-identity", True, b"\x00\xff" + ready(b"DEALER", b"\x00i"))
    twice = ready(b"DEALER", b"i")[2:] + b"\x08identity" + bytes(4)
    handshake("twice", True, b"\x00\xff" + frame(4, twice))
    handshake("name", True, b"\x00\xff" + frame(4, ready(b"DEALER", b"i")[2:] + b"\x03a b" + bytes(4)))
    handshake("version", False, b"\x00\x09" + GREETING[:10] + b"\x01\x05\x00\x00")
    for spare in (17, 18):
        # The longest READY within the smaller limit, and one that is a byte longer.
        body = ready(b"DEALER")[2:] + b"\x01X" + struct.pack(">I", spare) + bytes(spare)
        data = bytes([10 | role]) + b"\x00\x20" + frame(4, body)
        write("handshake", name_of.format(f"metadata-{len(body)}"), data)
    handshake("curve", False, b"\x00\x20" + GREETING.replace(b"NULL", b"CURV"))
    handshake("http", False, b"\x00\x20GET / HTTP/1.1\r\n\r\n")
    handshake("error-greeted", True, b"\x00\x20" + ERROR)
    handshake("data-greeted", True, b"\x00\x20" + MESSAGES)


# Format: one byte for the socket's limits, the number of peers and how they disconnect; then how
# each peer starts; then the steps.
def raw(data):
    return b"".join(bytes([0, len(part)]) + part for part in parts(data))


def parts(data):
    return [data[at : at + 255] for at in range(0, len(data), 255)]


SETTLE, SEND, SEND_UNREAD, LEAVE, SECOND = b"\x04", b"\x05", b"\x06", b"\x07\x01", 8
SMALL, LARGE, LARGEST = b"\x01\x01\x00\x05", b"\x01\x00\xd0", b"\x01\x00\xfa"
AGAIN = b"\x03\xff"
DEALER, REQ, GREETED, RAW = b"\x04", b"\x02", b"\x01", b"\x00"

for tight in (0, 1):
    for way in (0, 2, 3):
        name = f"{tight}-{way}"
        start = bytes([tight | way << 2])
        write("session", f"small-{name}", start + DEALER + SMALL + SETTLE + SMALL + AGAIN + SETTLE + SMALL)
        write("session", f"large-{name}", start + DEALER + LARGE + SEND + LARGE + LARGEST + SETTLE + SMALL)
        write("session", f"unread-{name}", start + DEALER + (LARGE + AGAIN + SEND_UNREAD) * 4 + SMALL)
        write("session", f"flood-{name}", start + DEALER + SMALL + AGAIN + AGAIN + SEND_UNREAD + SEND)
for name, end in BROKEN.items():
    write("session", name, b"\x00" + DEALER + SMALL + raw(end) + SEND + SMALL)
    write("session", f"greeted-{name}", b"\x00" + GREETED + raw(end) + SEND + SMALL)
write("session", "cut", b"\x00" + RAW + SEND.join(raw(part) for part in parts(GREETING + ready(b"REQ") + MESSAGES)))
for way in (0, 2, 3):
    both = bytes([2 | way << 2 | way << 4])
    write("session", f"two-{way}", both + REQ + DEALER + SMALL + bytes([SECOND | 1, 0, 5]) + SETTLE + bytes([SECOND | 4]) + LEAVE)
    write("session", f"two-hold-{way}", both + REQ + DEALER + LARGE + raw(b"\x02" + bytes(5) + b"\x07\xff\xff" + b"half") + SEND + bytes([SECOND | 1, 0, 250, SECOND | 6]) + AGAIN)
write("session", "refused", b"\x00" + GREETED + SETTLE + raw(ready(b"PUB")) + SEND + SMALL + AGAIN + SEND)
write("session", "mechanism", b"\x00" + RAW + raw(GREETING[:10]) + SEND + raw(GREETING[10:].replace(b"NULL\0", b"PLAIN")) + SEND)
request = frame(1, b"") + frame(0, b"request")
write("session", "req", b"\x00" + REQ + raw(frame(0, b"") + request + frame(1, b"id") + request) + AGAIN + SETTLE + SMALL)
announced = b"\x02" + bytes(5) + b"\x07\xff\xff"
write("session", "announced", b"\x00" + DEALER + raw(announced) + (SEND + raw(b"half")) * 4)
write("session", "probe", b"\x00" + RAW)


# Format: one byte for how the server starts, whether it reads and how it disconnects; then the
# steps, which are bytes, messages, PINGs or repetitions.
def steps(data):
    parts = [data[at : at + 31] for at in range(0, len(data), 31)]
    return b"".join(bytes([len(part) << 3]) + part for part in parts)


for choice in (3, 2, 7, 15, 11):
    start = bytes([choice])
    write("dealer", f"messages-{choice}", start + steps(MESSAGES) + b"\x1c\x8c\x9d\x1d\x86\x1c")
    write("dealer", f"pings-{choice}", start + b"\x86\xff\xff\x1c")
    write("dealer", f"large-{choice}", start + b"\xcc\xdc\x17\x1c\x0f")
for name, end in BROKEN.items():
    write("dealer", name, b"\x0b" + b"\x1c" + steps(end) + b"\x1c")
write("dealer", "greeted", b"\x09" + steps(ready(b"ROUTER") + MESSAGES))
write("dealer", "raw", b"\x08" + steps(GREETING + ready(b"REP") + MESSAGES))
write("dealer", "refused", b"\x09" + steps(ERROR))
