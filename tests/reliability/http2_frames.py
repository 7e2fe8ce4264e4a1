"""HTTP/2 written frame by frame, for what a well-behaved client library would not send."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator

import hpack
from hyperframe.frame import DataFrame, HeadersFrame, PingFrame, SettingsFrame, WindowUpdateFrame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SERVER_INFO = "/quantd.v1.Server/GetServerInfo"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING = 0, 1, 3, 4, 6
_END_STREAM = _ACK = 1


def request_headers(path: str = SERVER_INFO, extra: list[tuple[str, str]] | None = None) -> bytes:
    """A gRPC request's. Adds nothing to the peer's table, so that one block serves every stream."""
    headers = [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *(extra or []),
    ]
    never = [hpack.NeverIndexedHeaderTuple(name, value) for name, value in headers]
    return bytes(hpack.Encoder().encode(never, huffman=False))


def headers_frame(stream: int, block: bytes, ends: bool = True) -> bytes:
    frame = HeadersFrame(stream, block)
    if ends:
        frame.flags.add("END_HEADERS")
    return bytes(frame.serialize())


def message_frame(stream: int, message: bytes, last: bool = True) -> bytes:
    """One gRPC message in one DATA frame."""
    frame = DataFrame(stream, struct.pack(">BI", 0, len(message)) + message)
    if last:
        frame.flags.add("END_STREAM")
    return bytes(frame.serialize())


def data_frame(stream: int, data: bytes) -> bytes:
    return bytes(DataFrame(stream, data).serialize())


def connect(address: str, ca: str | None = None, source: str = "127.0.0.1") -> socket.socket:
    """A connection with the preface sent. `ca`: file of the authority for TLS, None for plain."""
    host, port = address.rsplit(":", 1)
    plain = socket.create_connection((host, int(port)), timeout=5, source_address=(source, 0))
    connection = plain
    if ca is not None:
        context = ssl.create_default_context(cafile=ca)
        context.set_alpn_protocols(["h2"])
        connection = context.wrap_socket(plain, server_hostname="localhost")
    window = WindowUpdateFrame(0, window_increment=2**30).serialize()
    connection.sendall(PREFACE + SettingsFrame(0).serialize() + window)
    return connection


class Answers:
    """Reads what comes on a connection: counts streams that have ended, answers pings."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._buffer = bytearray()
        self.ended = 0

    def read(self) -> bool:
        """Waits for something; False at the end of the connection."""
        data = self._connection.recv(1 << 18)
        if not data:
            return False
        self._buffer += data
        for kind, flags, payload in self._frames():
            if kind == _RESET or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                self.ended += 1
            elif kind == _PING and not flags & _ACK:
                answer = PingFrame(0, payload)
                answer.flags.add("ACK")
                self._connection.sendall(answer.serialize())
            elif kind == _SETTINGS and not flags & _ACK:
                ack = SettingsFrame(0)
                ack.flags.add("ACK")
                self._connection.sendall(ack.serialize())
        return True

    def _frames(self) -> Iterator[tuple[int, int, bytes]]:
        start = 0
        while len(self._buffer) - start >= 9:
            length = int.from_bytes(self._buffer[start : start + 3], "big")
            end = start + 9 + length
            if len(self._buffer) < end:
                break
            kind, flags = self._buffer[start + 3], self._buffer[start + 4]
            yield kind, flags, bytes(self._buffer[start + 9 : end])
            start = end
        del self._buffer[:start]
