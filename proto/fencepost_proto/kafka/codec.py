"""Frames to messages and back, for both ends of a connection.

A frame is an int32 length, a header and a message (https://kafka.apache.org/protocol#protocol_messages). Readers get
it without its length, writers return it with its length. Two rules stand apart from the schemas:

- A flexible version (KIP-482) has a request header with tagged fields, in which the client id keeps its old layout.
- The response to ApiVersions never has tagged fields in its header: its reader cannot yet know what the broker speaks
  (KIP-511).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from fencepost_proto.kafka.apis import APIS, Api
from fencepost_proto.kafka.schema.fields import Buffer
from fencepost_proto.kafka.schema.primitives import MalformedFrame, read_uvarint, skip_tagged_fields
from fencepost_proto.kafka.schema.reading import Reader, compile_reader
from fencepost_proto.kafka.schema.writing import Writer, compile_writer

__all__ = [
    "MAX_ELEMENTS",
    "MalformedFrame",
    "RequestHeader",
    "UnsupportedVersion",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
]

MAX_ELEMENTS = 200_000  # in all arrays of one request together: an element of two bytes becomes an object of a hundred
_ANY_NUMBER_OF_ELEMENTS = 2**62

_API_VERSIONS = 18
_REQUEST_START = struct.Struct(">hhih")  # API key, version, correlation id, length of the client id
_CORRELATION_ID = struct.Struct(">i")
_FRAME_OF_RESPONSE = struct.Struct(">ii")
_FRAME_OF_REQUEST = struct.Struct(">ihhih")
_NO_TAGGED_FIELDS = b"\0"


class RequestHeader(NamedTuple):
    """What stands before every request."""

    api_key: int
    api_version: int
    correlation_id: int
    client_id: str | None


class UnsupportedVersion(MalformedFrame):
    """A well-formed header of an API or a version that the codec does not have.

    For ApiVersions the answer is its version 0 with UNSUPPORTED_VERSION (35) and the ranges; for all others, as in
    Kafka, a closed connection.
    """

    def __init__(self, header: RequestHeader) -> None:
        api = APIS.get(header.api_key)
        known = f"{api.name} has {api.min_version} to {api.max_version}" if api else "no such API is known"
        super().__init__(f"API key {header.api_key} version {header.api_version}: {known}")
        self.header = header


def decode_request(frame: memoryview, max_elements: int = MAX_ELEMENTS) -> tuple[RequestHeader, object]:
    """Header and message of a request. Bytes after the message are ignored, as Kafka does. Raises MalformedFrame only.

    The message is of the class that APIS names. Record batches in it are views of the frame.
    """
    header, position = _decode_request_header(frame)
    compiled = _request_readers.get(header[:2]) or _compile_request_reader(header)
    if compiled.has_header_tags:
        position = _skip_header_tags(frame, position)
    return header, _read(compiled, frame, position, max_elements)[0]


def encode_response(api_key: int, version: int, correlation_id: int, message: object) -> list[Buffer]:
    """A response's frame in chunks: record batches stay chunks of their own, neither copied nor joined.

    Raises ValueError where the message has a value that its field cannot hold.
    """
    compiled = _response_writers.get((api_key, version)) or _compile_response_writer(api_key, version)
    chunks = _write(compiled, message)
    size = _CORRELATION_ID.size + compiled.has_header_tags + sum(map(len, chunks))
    start = _FRAME_OF_RESPONSE.pack(size, correlation_id)
    chunks[0] = b"".join((start, _NO_TAGGED_FIELDS if compiled.has_header_tags else b"", chunks[0]))
    return chunks


def encode_request(
    api_key: int, version: int, correlation_id: int, client_id: str | None, message: object
) -> list[Buffer]:
    """A request's frame in chunks. Raises ValueError as `encode_response` does."""
    compiled = _request_writers.get((api_key, version)) or _compile_request_writer(api_key, version)
    chunks = _write(compiled, message)
    client = b"" if client_id is None else client_id.encode()
    tags = _NO_TAGGED_FIELDS if compiled.has_header_tags else b""
    size = _REQUEST_START.size + len(client) + len(tags) + sum(map(len, chunks))
    client_length = -1 if client_id is None else len(client)
    start = _FRAME_OF_REQUEST.pack(size, api_key, version, correlation_id, client_length)
    chunks[0] = b"".join((start, client, tags, chunks[0]))
    return chunks


def decode_response(api_key: int, version: int, frame: memoryview) -> tuple[int, object]:
    """Correlation id and message of a response. Raises MalformedFrame, also where bytes are left after the message."""
    compiled = _response_readers.get((api_key, version)) or _compile_response_reader(api_key, version)
    if len(frame) < _CORRELATION_ID.size:
        raise MalformedFrame(f"a response of {len(frame)} bytes has no header")
    (correlation_id,) = _CORRELATION_ID.unpack_from(frame)
    position = _CORRELATION_ID.size
    if compiled.has_header_tags:
        position = _skip_header_tags(frame, position)
    message, end = _read(compiled, frame, position, _ANY_NUMBER_OF_ELEMENTS)
    if end != len(frame):
        raise MalformedFrame(f"{compiled.title}: {len(frame) - end} bytes are left after it")
    return correlation_id, message


# ---- What is compiled, at the first use of each ----


class _CompiledReader(NamedTuple):
    title: str
    has_header_tags: bool
    read: Reader


class _CompiledWriter(NamedTuple):
    title: str
    has_header_tags: bool
    cls: type[object]
    write: Writer


_request_readers: dict[tuple[int, ...], _CompiledReader] = {}
_response_readers: dict[tuple[int, int], _CompiledReader] = {}
_request_writers: dict[tuple[int, int], _CompiledWriter] = {}
_response_writers: dict[tuple[int, int], _CompiledWriter] = {}


def _compile_request_reader(header: RequestHeader) -> _CompiledReader:
    key, version = header.api_key, header.api_version
    api = APIS.get(key)
    if api is None or not api.min_version <= version <= api.max_version:
        raise UnsupportedVersion(header)
    flexible = api.is_flexible_in(version)
    compiled = _CompiledReader(_title(api.request, version), flexible, compile_reader(api.request, version, flexible))
    _request_readers[key, version] = compiled
    return compiled


def _compile_response_reader(key: int, version: int) -> _CompiledReader:
    api = _api(key, version)
    flexible = api.is_flexible_in(version)
    read = compile_reader(api.response, version, flexible)
    compiled = _CompiledReader(_title(api.response, version), flexible and key != _API_VERSIONS, read)
    _response_readers[key, version] = compiled
    return compiled


def _compile_request_writer(key: int, version: int) -> _CompiledWriter:
    api = _api(key, version)
    flexible = api.is_flexible_in(version)
    write = compile_writer(api.request, version, flexible)
    compiled = _CompiledWriter(_title(api.request, version), flexible, api.request, write)
    _request_writers[key, version] = compiled
    return compiled


def _compile_response_writer(key: int, version: int) -> _CompiledWriter:
    api = _api(key, version)
    flexible = api.is_flexible_in(version)
    write = compile_writer(api.response, version, flexible)
    compiled = _CompiledWriter(_title(api.response, version), flexible and key != _API_VERSIONS, api.response, write)
    _response_writers[key, version] = compiled
    return compiled


def _title(cls: type[object], version: int) -> str:
    return f"{cls.__name__} v{version}"


def _api(api_key: int, version: int) -> Api:
    """Raises ValueError where the codec does not have this version."""
    api = APIS.get(api_key)
    if api is None or not api.min_version <= version <= api.max_version:
        raise ValueError(f"API key {api_key} has no version {version} here")
    return api


# ---- Parts of a frame ----


def _decode_request_header(frame: memoryview) -> tuple[RequestHeader, int]:
    """The header but for its tagged fields, and where it ends."""
    if len(frame) < _REQUEST_START.size:
        raise MalformedFrame(f"a request of {len(frame)} bytes has no header")
    api_key, version, correlation_id, length = _REQUEST_START.unpack_from(frame)
    start = _REQUEST_START.size
    if length == -1:
        return RequestHeader(api_key, version, correlation_id, None), start
    end = start + length
    if length < 0 or end > len(frame):
        raise MalformedFrame(f"a client id of {length} bytes in a request of {len(frame)}")
    try:
        client_id = str(frame[start:end], "utf-8")
    except UnicodeDecodeError as error:
        raise MalformedFrame(f"the client id is not UTF-8: {error.reason}") from error
    return RequestHeader(api_key, version, correlation_id, client_id), end


def _skip_header_tags(frame: memoryview, position: int) -> int:
    if position < len(frame) and frame[position] == 0:
        return position + 1
    try:
        return _skip_some_tags(frame, position)
    except IndexError as error:
        raise MalformedFrame(f"the frame of {len(frame)} bytes ends in its header") from error


def _skip_some_tags(frame: memoryview, position: int) -> int:
    count, position = read_uvarint(frame, position)
    return skip_tagged_fields(frame, position, count, len(frame))


def _read(compiled: _CompiledReader, frame: memoryview, position: int, max_elements: int) -> tuple[object, int]:
    try:
        return compiled.read(frame, position, len(frame), max_elements)
    except MalformedFrame as error:
        raise MalformedFrame(f"{compiled.title}: {error}") from error
    except (struct.error, IndexError) as error:
        raise MalformedFrame(f"{compiled.title}: the frame of {len(frame)} bytes ends too early") from error
    except UnicodeDecodeError as error:
        raise MalformedFrame(f"{compiled.title}: a string is not UTF-8: {error.reason}") from error


def _write(compiled: _CompiledWriter, message: object) -> list[Buffer]:
    if type(message) is not compiled.cls:
        raise ValueError(f"a {type(message).__name__} where a {compiled.cls.__name__} belongs")
    try:
        return compiled.write(message)
    except (struct.error, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{compiled.title} cannot be written: {error}") from error
