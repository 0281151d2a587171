"""Faults on Kafka's clients, their requests and their links: a protocol between a broker's connection and its transport.

Bytes are passed on as they come while no rule could meet a request; only the places where frames begin are counted, so that
a rule that comes later finds one. While there are rules, whole frames are passed on:

- a request that is *dropped* ends the connection;
- one that is *delayed* holds up those behind it;
- one that *fails* waits until all before it are answered, as Kafka answers in order, and is answered here;
- one whose answer is *dropped* is passed on, and the connection ends in place of its answer.

A request fails only for the topics and partitions that a rule meets; the rest is passed on, and the two answers are joined.

What the client sends has crossed its link before it is looked at here, and what it is answered crosses it afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, cast

from fencepost_proto.kafka.apis import APIS
from fencepost_proto.kafka.codec import (
    MalformedFrame,
    RequestHeader,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from fencepost_proto.kafka.messages.fetch import FetchRequest
from fencepost_proto.kafka.messages.produce import (
    PartitionProduceData,
    ProduceRequest,
    ProduceResponse,
    TopicProduceData,
)
from fencepost_proto.protocol.errors import from_proto
from fencepost_proto.protocol.topic_ids import from_wire
from fencepost_proto.protocol.v1 import common_pb2
from fencepost_testing.faults.inside import FaultsInside, PostedRequest
from fencepost_testing.faults.kafka_messages import MAX_HEAD_BYTES, client_id_at, error_response, join, places_of, split
from fencepost_testing.faults.links import MAX_HELD_BYTES, ByteLine, Line
from fencepost_testing.faults.refused_batches import RefusedBatches
from fencepost_testing.faults.rules import CLIENTS, RequestAction, client_party

PROTOCOL: Final = "kafka"
MAX_FRAME_BYTES: Final = 128 * 1024 * 1024
MAX_UNSENT_BYTES: Final = 64 * 1024  # of answers that wait for the link: above that the broker pauses
_LENGTH: Final = struct.Struct(">i")
_START: Final = struct.Struct(">hhi")  # API key, version, correlation id
_PRODUCE: Final = 0

log = logging.getLogger(__name__)


class Inner(Protocol):
    """What is behind the faults: a broker's connection."""

    @property
    def is_answered(self) -> bool:
        """Whatever was passed on."""
        ...

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, error: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class FrameCounter:
    """Where frames begin in a stream that is only looked at."""

    __slots__ = ("_head", "left")

    def __init__(self) -> None:
        self.left = 0  # bytes of the frame that has begun; -1: these are no frames
        self._head = b""  # of the next frame's length

    @property
    def between_frames(self) -> bool:
        return not self.left and not self._head

    def advance(self, data: bytes | memoryview, stop_at_boundary: bool = False) -> int:
        """How many bytes were counted: all, or those up to the next frame's beginning."""
        position, end = 0, len(data)
        if self.between_frames and end >= _LENGTH.size and not stop_at_boundary:
            (size,) = _LENGTH.unpack_from(data)
            if size == end - _LENGTH.size:  # just one frame, as most are
                return end
        while position < end and self.left >= 0:
            if stop_at_boundary and self.between_frames:
                return position
            if self.left:
                step = min(self.left, end - position)
                self.left -= step
                position += step
                continue
            head = bytes(data[position : position + _LENGTH.size - len(self._head)])
            self._head += head
            position += len(head)
            if len(self._head) == _LENGTH.size:
                (size,) = _LENGTH.unpack(self._head)
                self.left, self._head = (size if 0 <= size <= MAX_FRAME_BYTES else -1), b""
        return end


@dataclass(slots=True)
class _Joined:
    """The answer of a request whose other part is with the broker."""

    api_key: int
    version: int
    failed: object


class FaultyKafkaConnection(asyncio.Protocol):
    """One connection of a Kafka client."""

    def __init__(self, inner: Inner, faults: FaultsInside) -> None:
        self._inner = inner
        self.faults = faults
        self._loop = asyncio.get_running_loop()
        self._transport: FaultyTransport | None = None
        self._counter = FrameCounter()
        self._partial: bytearray | None = None  # of a frame; None: bytes are passed on as they come
        self._frames: deque[bytes] = deque()  # whole ones that are not looked at yet
        self._waits: asyncio.TimerHandle | None = None  # of the first of these
        self._failing: tuple[bytes, PostedRequest] | None = None  # the first, until all before it are answered
        self._refused = RefusedBatches()
        self._dropped: dict[int, PostedRequest] = {}  # by correlation id: answers that are not to come
        self._joined: dict[int, _Joined] = {}
        self.client = CLIENTS  # the party that it is, once its first request has said so
        self._head: bytes | None = b""  # of its first request; None: that has said it
        self._coming = ByteLine(Line(faults, self.client, faults.party), self._arrived, self._hold)

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = FaultyTransport(cast(asyncio.Transport, transport), self)
        self._inner.connection_made(self._transport)
        self.faults.watch(self)

    def rules_changed(self) -> None:
        if self._is_gone:
            return
        if self.faults.is_reset(self.client):
            self.end()
            return
        self._coming.go_on()
        assert self._transport is not None
        self._transport.going.go_on()

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._read_client(data)
            if self._is_gone:
                return
        if self._partial is None and self.faults.is_quiet and not self._coming.held_bytes:
            self._counter.advance(data)
            self._inner.data_received(data)
            return
        self._coming.put(data, len(data))

    def _read_client(self, data: bytes) -> None:
        """Which client this is: its first request says so."""
        assert self._head is not None
        assert self._transport is not None
        self._head += bytes(data[: MAX_HEAD_BYTES - len(self._head)])
        client_id = client_id_at(self._head)
        if client_id is None:
            return
        self._head, self.client = None, client_party(client_id)
        self._coming.line.sender = self._transport.going.line.receiver = self.client
        if self.faults.has_links and self.faults.is_reset(self.client):
            self.end()

    def _arrived(self, data: bytes) -> None:
        if self._is_gone:
            return
        if self._partial is None and self._counter.left >= 0 and self.faults.has_requests:
            passed = self._counter.advance(data, stop_at_boundary=True)
            if passed:
                self._inner.data_received(data[:passed])
            if passed == len(data) and not self._counter.between_frames:
                return
            self._partial, data = bytearray(), data[passed:]
        if self._partial is None:
            self._counter.advance(data)
            self._inner.data_received(data)
            return
        self._partial += data
        self._cut_frames()
        self._go_on()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waits is not None:
            self._waits.cancel()
        self._frames.clear()
        self._coming.close()
        if self._transport is not None:
            self._transport.going.close()
        self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    # ---- Requests ----

    def _cut_frames(self) -> None:
        """Move whole frames from what has come to those that are to be looked at."""
        partial = self._partial
        assert partial is not None
        while len(partial) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(partial)
            if not 0 <= size <= MAX_FRAME_BYTES:
                self._counter.left = -1  # no frames: for the broker to refuse
                break
            end = _LENGTH.size + size
            if len(partial) < end:
                break
            self._frames.append(bytes(partial[:end]))
            del partial[:end]

    def _go_on(self) -> None:
        """Take frames until one has to wait."""
        while self._frames and self._waits is None and self._failing is None and not self._is_gone:
            self._take(self._frames.popleft())
        self._hold(self._coming.held_bytes)
        may_end = not self._frames and self._waits is None and self._failing is None
        if may_end and self._partial is not None and (self._counter.left < 0 or not self._is_needed):
            rest, self._partial = bytes(self._partial), None
            if rest:
                self._counter.advance(rest)
                self._inner.data_received(rest)

    @property
    def is_passive(self) -> bool:
        """Whatever is answered is not looked at."""
        return self.faults.is_quiet and self._failing is None and not self._dropped and not self._joined

    def _hold(self, coming_bytes: int) -> None:
        """Read no more from the client while too much of it waits."""
        if self._transport is not None:
            self._transport.hold(coming_bytes + sum(map(len, self._frames)) > MAX_HELD_BYTES)

    @property
    def _is_needed(self) -> bool:
        """Frames are still to be looked at."""
        return self.faults.has_requests or bool(self._refused)

    @property
    def _is_gone(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _take(self, frame: bytes) -> None:
        posted = self._rule_for(frame)
        if posted is None:
            self._pass_on(frame)
            return
        rule, text = posted.rule, _text_of(frame)
        if rule.action is RequestAction.DROP_ANSWER:
            _, _, correlation_id = _START.unpack_from(frame, _LENGTH.size)
            self._dropped[correlation_id] = posted
            self._pass_on(frame)
        elif rule.action is RequestAction.FAIL:
            if self._inner.is_answered:
                self._fail(frame, posted)
            else:
                self._failing = (frame, posted)
        elif not self.faults.fire(posted.posted, text):
            self._pass_on(frame)
        elif rule.action is RequestAction.DROP_REQUEST:
            self.end()
        else:
            self._waits = self._loop.call_later(self.faults.delay_s(rule), self._waited, frame)

    def _waited(self, frame: bytes) -> None:
        self._waits = None
        self._pass_on(frame)
        self._go_on()

    def _rule_for(self, frame: bytes) -> PostedRequest | None:
        view = memoryview(frame)[_LENGTH.size :]
        if len(view) < _START.size:
            return None
        api_key, _, _ = _START.unpack_from(view)
        api = APIS.get(api_key)
        if api is None:
            return None
        if not self.faults.requests(PROTOCOL, api.name):
            return None
        try:
            header, request = decode_request(view)
        except MalformedFrame:
            return None  # the broker's to refuse
        concerned = [one for one in self.faults.requests(PROTOCOL, api.name) if one.rule.is_client(header.client_id)]
        if isinstance(request, ProduceRequest) and request.acks == 0:
            answered = (RequestAction.DROP_ANSWER, RequestAction.FAIL)
            concerned = [posted for posted in concerned if posted.rule.action not in answered]
        return self.faults.first_met(concerned, places_of(request, self.faults.topic_name))

    def _pass_on(self, frame: bytes) -> None:
        if self._refused and _START.unpack_from(frame, _LENGTH.size)[0] == _PRODUCE:
            self._fail_some(
                frame, lambda topic, data: self._refused.error_for((topic, data.index), data.records or b"")
            )
        elif not self._is_gone:
            self._inner.data_received(frame)

    def end(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ---- Answers with an error ----

    def _fail(self, frame: bytes, posted: PostedRequest) -> None:
        if not self.faults.fire(posted.posted, _text_of(frame)):
            self._pass_on(frame)
            return
        header, request = decode_request(memoryview(frame)[_LENGTH.size :])
        error = posted.rule.error
        if isinstance(request, ProduceRequest):
            retriable = from_proto(common_pb2.Error(code=error)).retriable

            def error_of(topic: str, data: PartitionProduceData) -> int:
                place = (topic, data.index)
                if not posted.rule.meets_place(*place):
                    return self._refused.error_for(place, data.records or b"")
                if retriable:
                    self._refused.refuse(place, data.records or b"", error)
                return error

            self._fail_some(frame, error_of)
            return
        failed, passed = request, None
        if posted.rule.names_place:
            met, rest = split(header.api_key, request, self.faults.topic_name, posted.rule.meets_place)
            failed, passed = (request, None) if met is None else (met, rest)
        response = error_response(header.api_key, failed, error)
        if passed is None:
            self._write(encode_response(header.api_key, header.api_version, header.correlation_id, response))
            return
        if isinstance(passed, FetchRequest):
            passed = replace(passed, max_wait_ms=0)  # an error does not wait for records
        self._pass_rest(header, passed, response)

    def _pass_rest(self, header: RequestHeader, rest: object, failed: object) -> None:
        """The broker answers the rest of a request, and its answer gets the other part."""
        self._joined[header.correlation_id] = _Joined(header.api_key, header.api_version, failed)
        chunks = encode_request(header.api_key, header.api_version, header.correlation_id, header.client_id, rest)
        self._inner.data_received(b"".join(chunks))

    def _fail_some(self, frame: bytes, error_of: Callable[[str, PartitionProduceData], int]) -> None:
        """Answer with an error those partitions of a Produce request that get one, and pass on the others."""
        header, request = decode_request(memoryview(frame)[_LENGTH.size :])
        request = cast(ProduceRequest, request)
        failed, passed = [], []
        errors: dict[tuple[int, int], int] = {}
        for number, topic in enumerate(request.topic_data):
            name = topic.name or self.faults.topic_name(from_wire(topic.topic_id))
            for data in topic.partition_data:
                errors[number, data.index] = error_of(name, data)
            with_error = [data for data in topic.partition_data if errors[number, data.index]]
            without = [data for data in topic.partition_data if not errors[number, data.index]]
            failed += [replace(topic, partition_data=with_error)] if with_error else []
            passed += [replace(topic, partition_data=without)] if without else []
        if not failed:
            self._inner.data_received(frame)
            return
        response = cast(ProduceResponse, error_response(_PRODUCE, replace(request, topic_data=failed), 0))
        _set_errors(response, failed, request.topic_data, errors)
        if not passed:
            self._write(encode_response(_PRODUCE, header.api_version, header.correlation_id, response))
            return
        self._pass_rest(header, replace(request, topic_data=passed), response)

    def _write(self, chunks: Iterable[Any]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.send(list(chunks))

    # ---- Answers of the broker ----

    def answer_written(self, chunks: list[Any]) -> list[Any] | None:
        """The broker writes an answer: what to write. None: nothing, the connection has ended."""
        if self._dropped or self._joined:
            head = b"".join(bytes(chunk[:8]) for chunk in chunks[:3])
            correlation_id = int.from_bytes(head[4:8], "big", signed=True)
            posted = self._dropped.pop(correlation_id, None)
            if posted is not None and self.faults.fire(posted.posted, f"answer {correlation_id} of {PROTOCOL}"):
                self.end()
                return None
            joined = self._joined.pop(correlation_id, None)
            if joined is not None:
                chunks = _join(chunks, joined)
        if self._failing is not None:
            self._loop.call_soon(self._look_again)
        return chunks

    def _look_again(self) -> None:
        if self._failing is not None and self._inner.is_answered and not self._is_gone:
            (frame, posted), self._failing = self._failing, None
            self._fail(frame, posted)
            self._go_on()


class FaultyTransport(asyncio.Transport):
    """The transport as the broker's connection sees it. Each of its writes is one whole answer."""

    def __init__(self, transport: asyncio.Transport, connection: FaultyKafkaConnection) -> None:
        super().__init__()
        self.transport = transport
        faults = connection.faults
        self.going = ByteLine(Line(faults, faults.party, connection.client), transport.writelines, self._unsent)
        self._connection = connection
        self._is_full = False  # too much waits for the link
        self._is_closing = False  # the rest is sent first
        self._is_held = False  # by the faults
        self._is_paused = False  # by the broker

    def hold(self, held: bool) -> None:
        """Read nothing for now."""
        if held is not self._is_held:
            self._is_held = held
            self._set_reading()

    def pause_reading(self) -> None:
        self._is_paused = True
        self._set_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        self._set_reading()

    def _set_reading(self) -> None:
        if self.transport.is_closing():
            return
        wanted = not self._is_held and not self._is_paused
        if wanted is self.transport.is_reading():
            return
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def write(self, data: Any) -> None:
        self.writelines([data])

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        if self._connection.is_passive and not self.going.held_bytes:
            self.transport.writelines(list_of_data)
            return
        chunks = self._connection.answer_written(list(list_of_data))
        if chunks is not None:
            self.send(chunks)

    def send(self, chunks: list[Any]) -> None:
        """Over the link, to the client."""
        self.going.put(chunks, sum(map(len, chunks)))

    def _unsent(self, size: int) -> None:
        if self._is_closing and not size:
            asyncio.get_running_loop().call_soon(self.transport.close)
        elif (size > MAX_UNSENT_BYTES) is not self._is_full:
            self._is_full = not self._is_full
            if self._is_full:
                self._connection.pause_writing()
            else:
                self._connection.resume_writing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.transport.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self.transport.get_write_buffer_size() + self.going.held_bytes

    def is_closing(self) -> bool:
        return self._is_closing or self.transport.is_closing()

    def is_reading(self) -> bool:
        return not self._is_paused

    def close(self) -> None:
        if self.going.held_bytes:
            self._is_closing = True
        else:
            self.transport.close()

    def abort(self) -> None:
        self.transport.abort()


def _text_of(frame: bytes) -> str:
    api_key, version, correlation_id = _START.unpack_from(frame, _LENGTH.size)
    return f"{APIS[api_key].name} v{version}, request {correlation_id} of {PROTOCOL}"


def _set_errors(
    response: ProduceResponse,
    failed: list[TopicProduceData],
    asked: list[TopicProduceData],
    errors: dict[tuple[int, int], int],
) -> None:
    numbers = {(topic.name, topic.topic_id): number for number, topic in enumerate(asked)}
    for topic, answer in zip(failed, response.responses, strict=True):
        for partition in answer.partition_responses:
            partition.error_code = errors[numbers[topic.name, topic.topic_id], partition.index]
            partition.base_offset = -1


def _join(chunks: list[Any], joined: _Joined) -> list[Any]:
    frame = memoryview(b"".join(chunks))[_LENGTH.size :]
    correlation_id, response = decode_response(joined.api_key, joined.version, frame)
    join(response, joined.failed)
    return list(encode_response(joined.api_key, joined.version, correlation_id, response))
