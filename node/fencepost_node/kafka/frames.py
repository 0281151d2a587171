"""A stream of bytes as frames: an int32 length, then as many bytes. Pure.

Bytes that cannot be the beginning of a frame are told by what they look like: another protocol sent to this port is the
mistake that is made most often.
"""

from __future__ import annotations

import struct

LENGTH_BYTES = 4
LEAST_BYTES = 8  # API key, version, correlation id
_LENGTH = struct.Struct(">i")
_SHOWN_BYTES = 8  # of what is no frame

# How other protocols begin.
_TLS_HANDSHAKE = b"\x16\x03"
_HTTP2 = b"PRI "
_HTTP = (b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC")


class NotAFrame(Exception):
    """The stream is not of this protocol, or a frame is larger than is taken. The connection is of no use any more."""


class FrameReader:
    """Of one connection."""

    __slots__ = ("_max_bytes", "_missing", "_parts", "held_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.held_bytes = 0  # of a frame that is not complete yet
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []  # of that frame: the first begins with its length
        self._missing = 0  # bytes of it that have not come; 0: its length is not known yet

    def feed(self, data: bytes) -> list[memoryview]:
        """The frames that `data` completes, without their lengths, in order.

        Raises NotAFrame, and is of no use after that.
        """
        frames: list[memoryview] = []
        if self._parts:
            if len(data) < self._missing:
                self._parts.append(data)
                self._missing -= len(data)
                self.held_bytes += len(data)
                return frames
            data = b"".join((*self._parts, data))  # the end of one frame, and perhaps others
            self._parts, self._missing = [], 0
        view, position, end = memoryview(data), 0, len(data)
        while end - position >= LENGTH_BYTES:
            size = self._check(data, position)
            following = position + LENGTH_BYTES + size
            if following > end:
                self._missing = following - end
                break
            frames.append(view[position + LENGTH_BYTES : following])
            position = following
        self.held_bytes = end - position
        if self.held_bytes:
            self._parts = [data[position:]]
        return frames

    def _check(self, data: bytes, position: int) -> int:
        """The length that stands there."""
        (size,) = _LENGTH.unpack_from(data, position)
        if not LEAST_BYTES <= size <= self._max_bytes:
            raise NotAFrame(_what_it_is(data[position : position + _SHOWN_BYTES], size, self._max_bytes))
        return int(size)


def _what_it_is(start: bytes, size: int, max_bytes: int) -> str:
    shown = start.hex(" ")
    if start.startswith(_TLS_HANDSHAKE):
        return f"a TLS handshake ({shown}); this port speaks Kafka's protocol in plain text"
    if start.startswith(_HTTP2):
        return f"HTTP/2, as gRPC speaks it ({shown}); this port speaks Kafka's protocol"
    if start.startswith(_HTTP):
        return f"HTTP ({shown}); this port speaks Kafka's protocol"
    if size < 0:
        return f"a frame of {size} bytes ({shown})"
    if size < LEAST_BYTES:
        return f"a frame of {size} bytes ({shown}), and a request has {LEAST_BYTES} at least"
    return f"a frame of {size} bytes ({shown}); at most {max_bytes} are taken (kafka_max_request_bytes)"
