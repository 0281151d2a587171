"""Produce: many batches of many partitions on one long-lived stream.

Each batch is checked and appended the moment its message is read, in message order, and answered on its own: an error at
once, a success when the batch (or the one that it repeats) is below the high watermark (acks=all), or at once (acks 1
and 0). So results come in any order; the client matches them by correlation id.

Errors of a batch: UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, FENCED_LEADER_EPOCH,
UNKNOWN_LEADER_EPOCH, INVALID_REQUIRED_ACKS, MESSAGE_TOO_LARGE, CORRUPT_MESSAGE, INVALID_RECORD,
INVALID_TIMESTAMP, UNSUPPORTED_FOR_MESSAGE_FORMAT, NOT_ENOUGH_REPLICAS, INVALID_PRODUCER_EPOCH, OUT_OF_ORDER_SEQUENCE_NUMBER,
UNKNOWN_PRODUCER_ID, DUPLICATE_SEQUENCE_NUMBER, COORDINATOR_NOT_AVAILABLE (an id or epoch that was not given out, as far as
this broker knows), THROTTLING_QUOTA_EXCEEDED (too many new producers), KAFKA_STORAGE_ERROR: nothing was appended by this
attempt.
A retriable one holds up the producer's later batches on this stream, which get the same (`producers/refusals.py`).
REQUEST_TIMED_OUT and NOT_ENOUGH_REPLICAS_AFTER_APPEND: it was, and may yet be committed or cut.

Limits: MAX_PENDING results on one stream, then reading pauses; a message of more than `max_request_bytes` of records is
refused whole (RECORD_LIST_TOO_LARGE), one of more batches than `request_limits.py` allows ends the stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

from fencepost_node.producers.producer_state import Admit
from fencepost_node.producers.refusals import Refusals
from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.replication.leadership import Appended
from fencepost_node.requests.append import append_batch
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.v1 import broker_pb2 as pb
from fencepost_proto.runtime.signal import Signal

MAX_PENDING = 4_096  # batches of one stream that are appended or refused and not yet answered
MAX_RESULTS = 1_024  # in one response
BATCHES_IN_A_TURN = 64  # appended before others get a turn on the loop: a millisecond or two


class ProduceContext(Protocol):
    """What this needs of a gRPC servicer context."""

    async def write(self, message: pb.ProduceResponse) -> None: ...


async def produce(
    manager: ReplicaManager,
    requests: AsyncIterator[pb.ProduceRequest],
    context: ProduceContext,
    admit: Admit | None = None,  # asked about producers that a partition does not know
) -> None:
    """Serve one stream until the client ends it and every batch is answered."""
    stream = _ProduceStream(manager, admit)
    async with asyncio.TaskGroup() as group:
        writer = group.create_task(stream.write_results(context))
        async for request in requests:
            await stream.append_all(request)
            await stream.room()
        stream.finish()
        await writer


class _ProduceStream:
    def __init__(self, manager: ReplicaManager, admit: Admit | None) -> None:
        self._manager = manager
        self._admit = admit
        self._refusals = Refusals()
        self._latencies = manager.local.counts.calls.current.of("Produce")  # of batches: each is answered on its own
        self._time = asyncio.get_running_loop().time
        self._results: list[pb.ProduceResult] = []
        self._pending = 0  # taken and not yet written
        self._finished = False
        self._wake = Signal()
        self._room = Signal()

    async def append_all(self, request: pb.ProduceRequest) -> None:
        batches = deque((batch, batch.records) for batch in request.batches)  # reading that field copies it
        self._pending += len(batches)
        refusal = self._too_large(sum(len(records) for _, records in batches))
        for number in range(1, len(batches) + 1):
            batch, records = batches.popleft()  # its copy is held no longer than it takes
            if refusal is not None:
                self._refuse(batch.correlation_id, refusal)
            else:
                self._append_or_refuse(batch, records)
            if number % BATCHES_IN_A_TURN == 0:
                await asyncio.sleep(0)

    def _too_large(self, size: int) -> FencepostError | None:
        limit = self._manager.config.max_request_bytes
        if size <= limit:
            return None
        return errors.RecordListTooLarge(f"request with {size} bytes of records; at most {limit} are taken")

    def _append_or_refuse(self, batch: pb.ProduceBatch, records: bytes) -> None:
        try:
            self._append(batch, records)
        except FencepostError as refusal:
            self._refuse(batch.correlation_id, refusal)

    def _append(self, batch: pb.ProduceBatch, records: bytes) -> None:
        correlation_id, began = batch.correlation_id, self._time()

        def report(appended: Appended, log_start_offset: int, error: FencepostError | None) -> None:
            self._latencies.add(self._time() - began)
            if error is not None:
                self._refuse(correlation_id, error)
                return
            self._answer(
                pb.ProduceResult(
                    correlation_id=correlation_id,
                    base_offset=appended.base_offset,
                    log_start_offset=log_start_offset,
                    duplicate=appended.duplicate,
                )
            )

        append_batch(
            self._manager,
            self._refusals,
            batch.topic_id,
            batch.partition,
            records,
            leader_epoch=batch.leader_epoch,
            acks=batch.acks,
            timeout_ms=batch.timeout_ms,
            admit=self._admit,
            report=report,
        )

    def _refuse(self, correlation_id: int, error: FencepostError) -> None:
        self._answer(pb.ProduceResult(correlation_id=correlation_id, error=errors.to_proto(error), base_offset=-1))

    def _answer(self, result: pb.ProduceResult) -> None:
        self._results.append(result)
        self._wake.set()

    async def room(self) -> None:
        """Return when more may be taken."""
        while self._pending > MAX_PENDING:
            await self._room.wait()

    def finish(self) -> None:
        self._finished = True
        self._wake.set()

    async def write_results(self, context: ProduceContext) -> None:
        """Until finished and all is answered."""
        while not (self._finished and self._pending == 0):
            await self._wake.wait()
            while self._results:
                results, self._results = self._results[:MAX_RESULTS], self._results[MAX_RESULTS:]
                await context.write(pb.ProduceResponse(results=results))
                self._pending -= len(results)
                self._room.set()
