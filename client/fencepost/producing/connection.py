"""The Produce stream to one broker: batches of many partitions go out, answers come back in any order.

The stream is opened when the broker leads a partition, and again when it breaks. It begins with an empty message: batches
are accepted only once that is written, so a broker that cannot be reached never makes a batch's outcome uncertain. Batches
that are ready are written together, up to a bound.

- From the moment when a batch is given to a write, its outcome is unknown until it is answered.
- A batch that is still in the outbox when the stream breaks was certainly not sent.
- An answer that does not come in time breaks the stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import grpc

from fencepost.producing.accumulator import PartitionQueue, RecordBatch
from fencepost.producing.batch import Attempt, AttemptState
from fencepost.producing.config import ProducerConfig
from fencepost_proto.protocol.records import Compression
from fencepost_proto.protocol.v1 import broker_pb2 as pb
from fencepost_proto.protocol.v1 import broker_pb2_grpc
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.signal import Signal
from fencepost_proto.transport.cancellation import CallCancelled, own_cancellation_only
from fencepost_proto.transport.rpc_errors import reason_of

log = logging.getLogger(__name__)

ProduceCall = grpc.aio.StreamStreamCall[pb.ProduceRequest, pb.ProduceResponse]

MAX_BATCHES_OF_A_MESSAGE = 1_000  # a broker takes ten times as many
MAX_MESSAGE_BYTES = 1024 * 1024  # of batches coalesced into one message; a single batch may be larger
OPEN_TIMEOUT_S = 5.0
JITTER = (0.8, 1.2)  # of the pauses between streams
GRACE_S = 2.0  # for an answer's way back, in addition to the time that the leader has


class _StreamBroke(Exception):
    """Ends one stream; the text is the reason."""


_BREAKS = (_StreamBroke, grpc.RpcError, asyncio.InvalidStateError, TimeoutError)  # how a stream ends


class BrokerConnection:
    """The stream to the broker at one address. `run` is one of the producer's tasks."""

    def __init__(
        self,
        address: str,
        channel: Callable[[str], grpc.aio.Channel],
        config: ProducerConfig,
        host: Host,
        *,
        on_up: Callable[[BrokerConnection], None],
        on_down: Callable[[BrokerConnection], None],
        on_answer: Callable[[Attempt, pb.ProduceResult], None],
    ) -> None:
        self.address = address
        self.up = False
        self.reason = ""  # why the last stream broke
        self.queues: dict[PartitionQueue, None] = {}  # of partitions that this broker leads
        self._channel = channel
        self._config = config
        self._host = host
        self._on_up = on_up  # the stream can be written to
        self._on_down = on_down  # it broke; what was not answered never will be on it
        self._on_answer = on_answer
        self._backoff = replace(config.backoff, jitter=JITTER)
        # Compressing takes milliseconds a batch: the event loop gets a turn after each.
        self._message_bytes = MAX_MESSAGE_BYTES if config.codec is Compression.NONE else 1
        self._answer_limit_s = config.request_timeout_ms / 1000 + GRACE_S
        self._wanted = asyncio.Event()
        self._ready = Signal()
        self._outbox: deque[Attempt] = deque()
        self._in_flight: dict[int, tuple[Attempt, float]] = {}  # by correlation id, in sending order
        self._next_correlation_id = 0

    def lead(self, queue: PartitionQueue) -> None:
        """The broker leads this partition: keep a stream open."""
        self.queues[queue] = None
        self._wanted.set()

    def leave(self, queue: PartitionQueue) -> None:
        self.queues.pop(queue, None)
        if not self.queues:
            self._wanted.clear()

    def send(self, attempts: list[Attempt]) -> None:
        """Queue attempts for sending. Only while `up`."""
        self._outbox.extend(attempts)
        self._ready.set()

    async def run(self) -> None:
        """Keep a stream open while the broker leads a partition. Runs until cancelled."""
        failures = 0
        while True:
            await self._wanted.wait()
            try:
                await self._stream()
            except _StreamBroke as reason:
                self.reason = str(reason)
                failures = 1 if self.up else failures + 1
                if failures <= 1:
                    log.info("produce stream broke address=%s reason=%s", self.address, reason)
            finally:
                self._down()
            await asyncio.sleep(self._backoff.jittered_pause_s(failures, self._host.random))

    def _down(self) -> None:
        was_up, self.up = self.up, False
        self._outbox.clear()
        self._in_flight.clear()
        if was_up:
            self._on_down(self)

    async def _stream(self) -> None:
        """One stream's life; raises _StreamBroke at its end.

        No task group: where a child fails it leaves its parent marked as cancelled (Python 3.11), and then it is not known
        whether this connection shall end or only its stream.
        """
        call = broker_pb2_grpc.BrokerStub(self._channel(self.address)).Produce()
        try:
            await self._open(call)
        except BaseException:
            call.cancel()
            raise
        self.up = True
        self._on_up(self)
        loop = asyncio.get_running_loop()
        parts = [loop.create_task(part) for part in (self._transmit(call), self._receive(call), self._watch_overdue())]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = [part for part in parts if part.done()]
            call.cancel()
            for part in parts:
                part.cancel()
            await asyncio.wait(parts)
        errors = [error for part in parts if not part.cancelled() and (error := part.exception()) is not None]
        for error in errors:
            if not isinstance(error, _BREAKS):
                raise error
        first = [part.exception() for part in ended if not part.cancelled()]
        raise _StreamBroke(reason_of(first[0]) if first and first[0] is not None else "the call was cancelled")

    async def _open(self, call: ProduceCall) -> None:
        """Wait until the broker is reached. Until then no batch is written, so none has an unknown outcome."""
        try:
            with own_cancellation_only():
                async with asyncio.timeout(OPEN_TIMEOUT_S):
                    await call.write(pb.ProduceRequest())
        except (*_BREAKS, CallCancelled) as error:
            raise _StreamBroke(reason_of(error)) from None

    async def _transmit(self, call: ProduceCall) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._outbox:
                await self._ready.wait()
            request = self._next_request(loop.time())
            if request.batches:
                await call.write(request)

    def _next_request(self, now: float) -> pb.ProduceRequest:
        """As much of the outbox as fits one message. From here on the outcome of these batches is unknown."""
        request = pb.ProduceRequest()
        batches = request.batches
        size = 0
        while self._outbox and len(batches) < MAX_BATCHES_OF_A_MESSAGE:
            attempt = self._outbox[0]
            if attempt.state is not AttemptState.QUEUED:
                self._outbox.popleft()
                continue
            batch = cast(RecordBatch, attempt.batch)
            if size and (size + batch.size_bytes > self._message_bytes or batch.alone):
                break
            data = batch.data(attempt.stamp)
            self._outbox.popleft()
            size += len(data)
            self._next_correlation_id += 1
            self._in_flight[self._next_correlation_id] = (attempt, now)
            attempt.state = AttemptState.WRITTEN
            batches.add(
                correlation_id=self._next_correlation_id,
                topic_id=batch.queue.key[0],
                partition=batch.queue.partition,
                leader_epoch=attempt.leader_epoch,
                acks=self._config.wire_acks,
                timeout_ms=self._config.request_timeout_ms,
                records=data,
            )
            if batch.alone:
                break
        return request

    async def _receive(self, call: ProduceCall) -> None:
        async for response in call:
            for result in response.results:
                attempt, _ = self._in_flight.pop(result.correlation_id, (None, 0.0))
                if attempt is None:
                    raise _StreamBroke(f"an answer has correlation id {result.correlation_id}, which nothing waits for")
                self._on_answer(attempt, result)
        raise _StreamBroke("the broker ended the stream")

    async def _watch_overdue(self) -> None:
        """Raise _StreamBroke when an answer is overdue."""
        loop = asyncio.get_running_loop()
        while True:
            _, oldest_sent_at = next(iter(self._in_flight.values()), (None, loop.time()))
            left_s = oldest_sent_at + self._answer_limit_s - loop.time()
            if left_s <= 0:
                raise _StreamBroke(f"no answer within {self._answer_limit_s} s")
            await asyncio.sleep(min(left_s, self._answer_limit_s / 4))
