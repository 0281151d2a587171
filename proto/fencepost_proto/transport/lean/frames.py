"""The frames of the lean carrier: what each holds, how long it may be, and a reader of bytes from anywhere.

A connection begins, each way, with `MAGIC` and a HELLO. From then on there are frames:

    payload length (4 bytes) · kind (1 byte) · call (4 bytes; 0: the connection itself) · payload

Numbers are big-endian. The client numbers its calls from 1, rising. A message is one MESSAGE frame, or, above
PART_BYTES, PART frames and a MESSAGE frame with the rest.

A length is checked against its kind's bound as soon as the nine bytes of the header are there, so a frame never takes
more memory than its bound. Whatever is outside of these rules raises MalformedFrame: the connection ends.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

MAGIC: Final = (
    b"\xf5FENCEP\x01"  # the last byte is the version; no other protocol on the port begins with the first one
)

HELLO, START, MESSAGE, PART, HALF_CLOSE, STATUS, CANCEL, WINDOW, PING, PONG, GOODBYE = range(1, 12)

PART_BYTES: Final = 1024 * 1024  # of a message in one frame
SMALL_PIECE_BYTES: Final = 4 * 1024  # such pieces of what has come are put together
MAX_METHOD_BYTES: Final = 256
MAX_METADATA_ENTRIES: Final = 64
MAX_METADATA_BYTES: Final = 8 * 1024  # keys and values of one call, one way
MAX_DETAILS_BYTES: Final = 4 * 1024  # of a status; what is longer is cut
MAX_TIMEOUT_MS: Final = 2**32 - 2
_NO_TIMEOUT: Final = 2**32 - 1

_MAX_HEAD_BYTES = MAX_METHOD_BYTES + MAX_METADATA_BYTES + 4 * MAX_METADATA_ENTRIES + 64
MAX_PAYLOAD_BYTES: Final = {
    HELLO: 256,  # a later version may say more
    START: _MAX_HEAD_BYTES,
    MESSAGE: PART_BYTES,
    PART: PART_BYTES,
    HALF_CLOSE: 0,
    STATUS: _MAX_HEAD_BYTES + MAX_DETAILS_BYTES,
    CANCEL: 0,
    WINDOW: 4,
    PING: 8,
    PONG: 8,
    GOODBYE: MAX_DETAILS_BYTES,
}

Metadata: TypeAlias = "tuple[tuple[str, str | bytes], ...]"
NO_METADATA: Final[Metadata] = ()

_HEADER = struct.Struct("!IBI")
HEADER_BYTES: Final = _HEADER.size
_HELLO = struct.Struct("!II")
_START = struct.Struct("!IH")
_STATUS = struct.Struct("!BH")
_ENTRY = struct.Struct("!BH")
_NUMBER = struct.Struct("!I")


class MalformedFrame(Exception):
    """These bytes are no frames of this protocol. The message names what is wrong."""


class Frame(NamedTuple):
    kind: int
    call: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Hello:
    """How many bytes a side takes before it says that it has consumed some."""

    call_window_bytes: int
    connection_window_bytes: int


@dataclass(frozen=True, slots=True)
class Start:
    """What begins a call."""

    method: str
    timeout_ms: int | None
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class EndOfCall:
    """What ends a call: a code of gRPC, the details, and the trailing metadata."""

    code: int
    details: str
    metadata: Metadata = NO_METADATA


# ---- Writing ----


def frame(kind: int, call: int, payload: bytes = b"") -> bytes:
    """One frame. The payload is within its bound."""
    return _HEADER.pack(len(payload), kind, call) + payload


def header(kind: int, call: int, size_bytes: int) -> bytes:
    """The header of a frame whose payload is written after it."""
    return _HEADER.pack(size_bytes, kind, call)


def hello(said: Hello) -> bytes:
    return MAGIC + frame(HELLO, 0, _HELLO.pack(said.call_window_bytes, said.connection_window_bytes))


def start(call: int, said: Start) -> bytes:
    """Raises ValueError where the method or the metadata are outside of their bounds."""
    method = said.method.encode()
    if len(method) > MAX_METHOD_BYTES:
        raise ValueError(f"a method's name of {len(method)} bytes; at most {MAX_METHOD_BYTES} are sent")
    timeout_ms = _NO_TIMEOUT if said.timeout_ms is None else min(max(said.timeout_ms, 0), MAX_TIMEOUT_MS)
    return frame(START, call, _START.pack(timeout_ms, len(method)) + method + _metadata(said.metadata))


def status(call: int, said: EndOfCall) -> bytes:
    """Raises ValueError where the metadata is outside of its bounds. Details that are too long are cut."""
    details = said.details.encode(errors="replace")[:MAX_DETAILS_BYTES]
    return frame(STATUS, call, _STATUS.pack(said.code, len(details)) + details + _metadata(said.metadata))


def window(call: int, size_bytes: int) -> bytes:
    return frame(WINDOW, call, _NUMBER.pack(size_bytes))


def message(call: int, data: bytes) -> list[bytes | memoryview]:
    """The pieces to write for one message, in order; a large one is not copied."""
    if len(data) <= PART_BYTES:
        return [_HEADER.pack(len(data), MESSAGE, call), data]
    pieces: list[bytes | memoryview] = []
    view = memoryview(data)
    for begin in range(0, len(data), PART_BYTES):
        part = view[begin : begin + PART_BYTES]
        is_last = begin + PART_BYTES >= len(data)
        pieces += [_HEADER.pack(len(part), MESSAGE if is_last else PART, call), part]
    return pieces


def check_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """The metadata of a call, as it is sent. Raises ValueError where it is outside of its bounds."""
    entries = tuple((str(key), value) for key, value in metadata)
    _metadata(entries)
    return entries


def _metadata(entries: Metadata) -> bytes:
    if not entries:
        return b"\0"
    if len(entries) > MAX_METADATA_ENTRIES:
        raise ValueError(f"{len(entries)} entries of metadata; at most {MAX_METADATA_ENTRIES} are sent")
    parts = [bytes([len(entries)])]
    size = 0
    for key, value in entries:
        name = key.encode()
        data = value if isinstance(value, bytes) else value.encode()
        size += len(name) + len(data)
        if len(name) > 255 or size > MAX_METADATA_BYTES:
            raise ValueError(
                f"metadata of more than {MAX_METADATA_BYTES} bytes, or a key of more than 255: {key[:50]!r}"
            )
        parts += [_ENTRY.pack(len(name), len(data)), name, data]
    return b"".join(parts)


# ---- Reading ----


class FrameReader:
    """Takes bytes as they come, gives whole frames. A large frame, which comes in many pieces, is copied once."""

    __slots__ = ("_data", "_pieces", "_position", "_wanted", "held_bytes")

    def __init__(self) -> None:
        self.held_bytes = 0  # taken, and in no frame yet
        self._data = b""  # from `_position` on: not read yet
        self._position = 0
        self._pieces: deque[bytes] = deque()  # what came behind `_data`
        self._wanted = HEADER_BYTES  # so many bytes make another look worth while

    def feed(self, data: bytes) -> None:
        if len(data) < SMALL_PIECE_BYTES and self._pieces and len(self._pieces[-1]) < SMALL_PIECE_BYTES:
            self._pieces[-1] += data  # a byte of its own would take fifty
        else:
            self._pieces.append(data)
        self.held_bytes += len(data)

    def take(self, most: int) -> list[Frame]:
        """Up to so many frames; fewer: there are no more whole ones. Raises MalformedFrame."""
        frames: list[Frame] = []
        data, position, held, wanted = self._data, self._position, self.held_bytes, self._wanted
        while held >= wanted and len(frames) < most:
            left = len(data) - position
            if left < HEADER_BYTES:
                piece = self._pieces.popleft()
                data, position = data[position:] + piece if left else piece, 0
                continue
            size, kind, call = _HEADER.unpack_from(data, position)
            bound = MAX_PAYLOAD_BYTES.get(kind)
            if bound is None:
                raise MalformedFrame(f"a frame of kind {kind}")
            if size > bound:
                raise MalformedFrame(f"a frame of kind {kind} with {size} bytes; at most {bound} are taken")
            begin = position + HEADER_BYTES
            end = begin + size
            if end <= len(data):
                frames.append(Frame(kind, call, data[begin:end]))
                position = end
            elif held >= HEADER_BYTES + size:
                payload, data, position = self._joined(data, begin, end)
                frames.append(Frame(kind, call, payload))
            else:
                wanted = HEADER_BYTES + size
                break
            held -= HEADER_BYTES + size
            wanted = HEADER_BYTES
        if position == len(data):
            data, position = b"", 0  # else an idle connection holds what it has read
        self._data, self._position, self.held_bytes, self._wanted = data, position, held, wanted
        return frames

    def _joined(self, data: bytes, begin: int, end: int) -> tuple[bytes, bytes, int]:
        """The bytes from `begin` to `end` of `data` and the pieces behind it; the last of these, and where it goes on."""
        parts = [memoryview(data)[begin:]]
        missing = end - len(data)
        while True:
            data = self._pieces.popleft()
            parts.append(memoryview(data)[:missing])
            if missing <= len(data):
                return b"".join(parts), data, missing
            missing -= len(data)


def read_hello(payload: bytes) -> Hello:
    """Raises MalformedFrame."""
    if len(payload) < _HELLO.size:
        raise MalformedFrame(f"a HELLO of {len(payload)} bytes")
    return Hello(*_HELLO.unpack_from(payload))


def read_start(payload: bytes) -> Start:
    """Raises MalformedFrame."""
    if len(payload) < _START.size:
        raise MalformedFrame(f"a START of {len(payload)} bytes")
    timeout_ms, size = _START.unpack_from(payload)
    end = _START.size + size
    method = _text(payload, _START.size, end)
    return Start(method, None if timeout_ms == _NO_TIMEOUT else timeout_ms, _read_metadata(payload, end))


def read_status(payload: bytes) -> EndOfCall:
    """Raises MalformedFrame."""
    if len(payload) < _STATUS.size:
        raise MalformedFrame(f"a STATUS of {len(payload)} bytes")
    code, size = _STATUS.unpack_from(payload)
    end = _STATUS.size + size
    return EndOfCall(code, _text(payload, _STATUS.size, end), _read_metadata(payload, end))


def read_window(payload: bytes) -> int:
    """Raises MalformedFrame."""
    if len(payload) != _NUMBER.size:
        raise MalformedFrame(f"a WINDOW of {len(payload)} bytes")
    size_bytes: int = _NUMBER.unpack(payload)[0]
    return size_bytes


def _text(payload: bytes, begin: int, end: int) -> str:
    if end > len(payload):
        raise MalformedFrame(f"text that ends at {end} in {len(payload)} bytes")
    return payload[begin:end].decode(errors="replace")


def _read_metadata(payload: bytes, position: int) -> Metadata:
    if position >= len(payload):
        raise MalformedFrame("no metadata")
    count = payload[position]
    position += 1
    if not count:
        return NO_METADATA
    if count > MAX_METADATA_ENTRIES:
        raise MalformedFrame(f"{count} entries of metadata; at most {MAX_METADATA_ENTRIES} are taken")
    entries: list[tuple[str, str | bytes]] = []
    for _ in range(count):
        if position + _ENTRY.size > len(payload):
            raise MalformedFrame("metadata that is cut off")
        key_size, value_size = _ENTRY.unpack_from(payload, position)
        begin = position + _ENTRY.size
        middle, position = begin + key_size, begin + key_size + value_size
        key = _text(payload, begin, middle)
        if position > len(payload):
            raise MalformedFrame("metadata that is cut off")
        value = payload[middle:position]
        entries.append((key, value if key.endswith("-bin") else value.decode(errors="replace")))
    return tuple(entries)
