"""Writes a client's history: what its application asks for, and what it gets, for `fencepost check` to judge.

`Producer(…, history=…)` and `Consumer(…, history=…)` each report to one of these two. A process that dies leaves operations
without an outcome; the checker takes them as unknown. The history stays open: close it after its client.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from fencepost.consuming.partition import ConsumerRecord, TopicPartition
from fencepost.history import History
from fencepost.producing.delivery import Delivery
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.runtime.tasks import Tasks


class SendRecorder:
    """Records a producer's sends: each invocation, and its outcome once it is known, with the stamp (producer id, epoch,
    sequence) by which brokers know the record.

    Values must be unique in their topic, or the checker cannot identify records.
    """

    def __init__(self, history: History, send: Callable[..., Awaitable[Delivery]]) -> None:
        self._history = history
        self._send = send  # the producer's own
        self._outcomes = Tasks(self._task_failed)  # one of each record without an outcome
        self._failure: BaseException | None = None

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        timestamp_ms: int | None = None,
    ) -> Delivery:
        """`Producer.send`, recorded."""
        operation = self._history.invoke_send(topic, partition, key, value)
        try:
            delivery = await self._send(
                topic, value, key=key, partition=partition, headers=headers, timestamp_ms=timestamp_ms
            )
        except FencepostError as error:
            self._history.complete_send(operation, topic, partition, -1, error=error)
            raise
        self._outcomes.spawn(self._outcome(operation, topic, partition, delivery), "record-outcome")
        return delivery

    async def close(self) -> None:
        """Wait until every outcome is in the history. Raises what went wrong in writing one."""
        await self._outcomes.join()
        if self._failure is not None:
            raise self._failure

    async def _outcome(self, operation: int, topic: str, partition: int | None, delivery: Delivery) -> None:
        try:
            metadata = await delivery
        except FencepostError as error:
            self._history.complete_send(operation, topic, partition, -1, error=error, producer=delivery.stamp)
        else:
            self._history.complete_send(operation, topic, metadata.partition, metadata.offset, producer=delivery.stamp)

    def _task_failed(self, error: BaseException) -> None:
        self._failure = self._failure or error


class ReadRecorder:
    """Records a consumer's reads: each poll, what the application gets by it, and every move of a position."""

    def __init__(self, history: History, high_watermark: Callable[[TopicPartition], int]) -> None:
        self._history = history
        self._high_watermark = high_watermark
        self._poll = 0  # the operation to which records belong that are handed out now
        self._found: dict[TopicPartition, int] = {}  # positions that the consumer found out, not recorded yet

    def invoked(self) -> None:
        """The application reads, and nothing that was read before is left."""
        self._poll = self._history.invoke_poll()

    def failed(self, error: BaseException) -> None:
        """Reading raised this."""
        self._history.polled_nothing(self._poll, error)

    def handed_out(self, records: Sequence[ConsumerRecord]) -> None:
        """The application gets these."""
        for record in records:
            tp = TopicPartition(record.topic, record.partition)
            if self._found.get(tp) == record.offset:
                self.moved(tp, record.offset)
            self._history.polled(self._poll, record, self._high_watermark(tp))
        if not records:
            self._history.polled_nothing(self._poll)

    def moved(self, tp: TopicPartition, offset: int) -> None:
        """The application has moved the position."""
        self._found.pop(tp, None)
        self._history.moved(tp.topic, tp.partition, offset)

    def found(self, tp: TopicPartition, offset: int) -> None:
        """The consumer has moved the position by itself. Recorded when the record there is handed out: records from before
        the move may still wait to be handed out."""
        self._found[tp] = offset
