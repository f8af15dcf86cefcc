#!/usr/bin/env python3
"""Sends one request to a service and prints its replies, one line each.

    python3 examples/client.py [--replies N] ENDPOINT FRAME [FRAME ...]
"""

import argparse
import sys

import zmq

ERROR = b"\0zmq-echo/error\0"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--replies", type=int, default=1, help="how many replies to wait for")
parser.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for each")
parser.add_argument("endpoint", help="such as tcp://127.0.0.1:5555")
parser.add_argument("frames", nargs="+", metavar="FRAME")
options = parser.parse_args()

with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
    socket.linger = 0
    socket.connect(options.endpoint)
    # An id, the empty delimiter, and the payload. The service sees the payload alone.
    socket.send_multipart([b"1", b""] + [frame.encode() for frame in options.frames])
    for _ in range(options.replies):
        if not socket.poll(options.timeout * 1000):
            sys.exit(f"no reply within {options.timeout} s")
        payload = socket.recv_multipart()[2:]
        if payload[0] == ERROR:
            code, text, retry = (frame.decode() for frame in payload[1:4])
            sys.exit(f"{code}: {text} ({retry})")
        print(" ".join(frame.decode(errors="backslashreplace") for frame in payload))
