"""One connection of a Kafka client.

Requests are *taken* in the order in which they come and *answered* in that order. A produce request is taken at once, and
its answer comes later by a callback, so an append is not held up by the acknowledgement before it. Every other request has
the connection's one task to itself: what comes behind it is taken once it is done, as in Kafka.

**Bounds.** Not more than `kafka_max_pending_requests` are taken and not answered. Beyond that, while a request has the task,
and while the client does not read what it is answered, nothing is read from it; so a connection holds one frame, what one
read of the socket has brought behind it, and one answer. Where an answer has records, `limits.answers` is asked before they
are read.

**Ends.** Bytes that are no frame, a request that cannot be read, an API or version that is not served (but ApiVersions,
KIP-511), and an acks=0 batch that was refused end the connection, with one line in the log. So does a request that fails in
a way that no one has foreseen; a broken invariant ends the process.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

from fencepost_node.kafka import api_versions, fetch, produce
from fencepost_node.kafka.context import Answer, Encoded, KafkaBroker, KafkaContext
from fencepost_node.kafka.dispatch import FETCH, HANDLERS
from fencepost_node.kafka.frames import FrameReader, NotAFrame
from fencepost_proto.kafka.apis import APIS
from fencepost_proto.kafka.codec import MalformedFrame, UnsupportedVersion, decode_request, encode_response
from fencepost_proto.kafka.messages.fetch import FetchRequest
from fencepost_proto.kafka.messages.produce import ProduceRequest, ProduceResponse
from fencepost_proto.kafka.response_errors import error_codes
from fencepost_proto.protocol.errors import ErrorCode, FencepostError, InvariantBroken
from fencepost_proto.runtime.signal import Signal

log = logging.getLogger(__name__)

WRITE_HIGH_WATER_BYTES = 64 * 1024  # written and not taken by the system: above that the client does not read
REQUESTS_IN_A_TURN = 32  # taken before others get a turn on the loop: a millisecond or so
NO_ACKS = 0
FIRST_IMAGE_WAIT_S = 5.0  # after a broker's start


@dataclass(frozen=True, slots=True)
class ConnectionCalls:
    """What a connection reports to its listener."""

    opened: Callable[[KafkaConnection], bool]  # False: it is one too many
    closed: Callable[[KafkaConnection], None]
    held: Callable[[KafkaConnection, int], None]  # so many bytes more of a frame that is not complete


class KafkaConnection(asyncio.Protocol):
    """Made by the listener for each connection."""

    def __init__(self, broker: KafkaBroker, calls: ConnectionCalls) -> None:
        self.active_at = 0.0  # when bytes last came or went
        self.frame_began_at: float | None = None  # of the frame that is not complete
        self.context = KafkaContext(broker, "")
        self._calls = calls
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(broker.config.kafka_max_request_bytes)
        self._max_pending = broker.config.kafka_max_pending_requests
        self._requests: deque[memoryview] = deque()  # frames that are not taken yet
        self._answers: deque[Answer] = deque()  # of requests that are taken, in their order
        self._transport: asyncio.Transport | None = None
        self._work: tuple[Answer, object] | None = None  # the request that has the task
        self._has_work = Signal()
        self._task: asyncio.Task[None] | None = None
        self._paused_reading = False
        self._paused_writing = False
        self._turn_is_due = False
        self._drained: asyncio.Future[None] | None = None

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.active_at = self.context.metadata_asked_at = self._loop.time()
        name = transport.get_extra_info("peername")
        self.context.peer = f"kafka:{name[0]}:{name[1]}" if isinstance(name, tuple) else f"kafka:{name}"
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES, low=0)
        if not self._calls.opened(self):
            self.close(f"{self._broker.config.kafka_max_connections} connections are the most (kafka_max_connections)")

    def data_received(self, data: bytes) -> None:
        if self.is_closing:
            return
        self.active_at = self._loop.time()
        held = self._reader.held_bytes
        try:
            frames = self._reader.feed(data)
        except NotAFrame as error:
            self.close(str(error))
            return
        if self._reader.held_bytes != held:
            if frames or not held:
                self.frame_began_at = self.active_at if self._reader.held_bytes else None
            self._calls.held(self, self._reader.held_bytes - held)
        if frames:
            self._requests.extend(frames)
            self._take()

    def eof_received(self) -> None:
        """The transport closes: whoever has closed does not wait for answers."""

    def connection_lost(self, error: Exception | None) -> None:
        self._calls.held(self, -self._reader.held_bytes)
        self._calls.closed(self)
        self._requests.clear()
        if self._task is not None:
            self._task.cancel()
        self._resolve(self._drained)
        for answer in self._answers:
            self._resolve(answer.written)
        self._answers.clear()

    def pause_writing(self) -> None:
        self._paused_writing = True
        self._pause_or_resume_reading()

    def resume_writing(self) -> None:
        self._paused_writing = False
        self.active_at = self._loop.time()
        self._resolve(self._drained)
        self._take()

    # ---- Ends ----

    @property
    def is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    @property
    def is_answered(self) -> bool:
        """Whatever was taken."""
        return not self._answers

    @property
    def unwritten_bytes(self) -> int:
        """Of answers, which the system has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def is_idle(self) -> bool:
        """It waits for a request, or for its client to read; not for this broker."""
        return self._paused_writing or self.is_answered

    @property
    def ended(self) -> asyncio.Task[None] | None:
        """Its task, to be awaited once it is closed."""
        return self._task

    def close(self, reason: str) -> None:
        """End it, with one line in the log; empty: without."""
        if self.is_closing:
            return
        if reason:
            log.warning("kafka connection closed peer=%s client=%r reason=%s", self.context.peer, self._client, reason)
        assert self._transport is not None
        self._requests.clear()
        self._transport.close()

    def abort(self) -> None:
        """Let go of it at once: of what is not written, too."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def _client(self) -> str:
        return (self.context.client_id or "")[:100]

    # ---- Requests ----

    def _take(self) -> None:
        """Take requests for as long as there are any and none has to be waited for."""
        taken = 0
        while self._requests and self._work is None and not self._paused_writing and not self.is_closing:
            if len(self._answers) >= self._max_pending:
                break
            if taken == REQUESTS_IN_A_TURN:
                if not self._turn_is_due:
                    self._turn_is_due = True
                    self._loop.call_soon(self._next_turn)
                break
            taken += 1
            self._take_one(self._requests.popleft())
        self._pause_or_resume_reading()

    def _next_turn(self) -> None:
        self._turn_is_due = False
        self._take()

    def _pause_or_resume_reading(self) -> None:
        """Nothing is read while something that was read waits to be taken, or written."""
        wanted = bool(self._requests) or self._paused_writing
        if wanted is self._paused_reading or self.is_closing:
            return
        assert self._transport is not None
        self._paused_reading = wanted
        if wanted:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _take_one(self, frame: memoryview) -> None:
        try:
            header, request = decode_request(frame)
        except UnsupportedVersion as error:
            self._refuse_version(error)
            return
        except MalformedFrame as error:
            self.close(f"a request that cannot be read: {error}")
            return
        self.context.client_id = header.client_id
        answer = Answer(header.api_key, header.api_version, header.correlation_id, self.active_at)
        if isinstance(request, ProduceRequest):
            if request.acks != NO_ACKS:
                self._answers.append(answer)
            if produce.is_large(request) or not self.context.feed.is_known:
                self._give_work(answer, request)
            else:
                produce.take(self.context, request, answer.version, partial(self._produced, answer, request.acks))
        elif header.api_key in HANDLERS or header.api_key == FETCH:
            self._answers.append(answer)
            self._give_work(answer, request)
        else:
            self.close(f"API key {header.api_key} is not served")

    def _give_work(self, answer: Answer, request: object) -> None:
        self._work = (answer, request)
        if self._task is None:
            self._task = self._loop.create_task(self._do_all_work(), name=f"kafka {self.context.peer}")
        self._has_work.set()

    def _refuse_version(self, error: UnsupportedVersion) -> None:
        header = error.header
        if header.api_key == api_versions.KEY:
            answer = Answer(header.api_key, 0, header.correlation_id, self.active_at)
            self._answers.append(answer)
            self._set(answer, api_versions.unsupported())
        else:
            self.close(str(error))

    def _produced(self, answer: Answer, acks: int, response: ProduceResponse) -> None:
        if acks == NO_ACKS:
            if refusals := produce.refusals_of(response):
                self.close(refusals)
            return
        self._set(answer, response)
        if self._requests:
            self._take()

    async def _do_all_work(self) -> None:
        """The connection's task: whatever is not done by a callback."""
        while True:
            await self._has_work.wait()
            assert self._work is not None
            answer, request = self._work
            if not self.context.feed.is_known and answer.api_key != api_versions.KEY:
                # It has just started: what it would say of topics and leaders would be wrong.
                await self.context.feed.wait_known(FIRST_IMAGE_WAIT_S)
            try:
                if isinstance(request, FetchRequest):
                    await fetch.serve(self.context, request, answer.version, partial(self._write_out, answer))
                elif isinstance(request, ProduceRequest):
                    done = partial(self._produced, answer, request.acks)
                    await produce.take_in_turns(self.context, request, answer.version, done)
                else:
                    self._set(answer, await HANDLERS[answer.api_key](self.context, request, answer.version))
            except Exception as error:  # noqa: BLE001  # the one place where what no one has foreseen ends
                self._failed(error)
                return
            self._work = None
            self._take()

    def _failed(self, error: Exception) -> None:
        if isinstance(error, InvariantBroken):
            self._broker.on_failure(error)
        elif not isinstance(error, FencepostError):
            log.error("a request failed unforeseen peer=%s", self.context.peer, exc_info=error)
        self.close(f"{type(error).__name__}: {error}")

    # ---- Answers ----

    def _set(self, answer: Answer, response: object) -> None:
        """The answer is known; write it, and those behind it, as far as all before them are."""
        if isinstance(response, Encoded):
            correlation_id = answer.correlation_id.to_bytes(4, "big", signed=True)
            view = memoryview(response.frame)
            answer.chunks = [view[:4], correlation_id, view[8:]]
        else:
            answer.chunks = encode_response(answer.api_key, answer.version, answer.correlation_id, response)
        self._count(answer, response)
        answers, transport = self._answers, self._transport
        if transport is None or not answers or answers[0] is not answer:
            return
        self.active_at = self._loop.time()
        while answers and (chunks := answers[0].chunks) is not None:
            if not transport.is_closing():
                if len(chunks) == 1:
                    transport.write(chunks[0])
                else:
                    transport.writelines(chunks)
            self._resolve(answers.popleft().written)

    def _count(self, answer: Answer, response: object) -> None:
        counts, api = self._broker.manager.local.counts.kafka, APIS[answer.api_key].name
        counts.of(api).add(self._loop.time() - answer.began_at)
        for code in () if isinstance(response, Encoded) else error_codes(response):
            counts.refused[api, ErrorCode(code).name] += 1

    async def _write_out(self, answer: Answer, response: object) -> None:
        """Return once the answer has been handed to the system, or the connection has gone."""
        self._set(answer, response)
        if answer in self._answers:
            answer.written = self._loop.create_future()
            await answer.written
        if self._paused_writing and not self.is_closing:
            self._drained = self._loop.create_future()
            await self._drained

    @staticmethod
    def _resolve(future: asyncio.Future[None] | None) -> None:
        if future is not None and not future.done():
            future.set_result(None)
