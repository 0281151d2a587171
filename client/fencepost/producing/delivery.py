"""What `send` returns: the record's place in the log, once it is known.

All records of a batch share the batch's outcome. A future exists only while a task waits for it, so that resolving a batch
costs nothing for records that no task waits for.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, cast

from fencepost.history_format import RecordStamp
from fencepost.producing.accumulator import RecordBatch
from fencepost.producing.batch import NO_STAMP, Delivered
from fencepost_proto.protocol.errors import InvalidRequest
from fencepost_proto.protocol.metadata import APPEND_TIME
from fencepost_proto.protocol.record_batch import add_sequence


class RecordMetadata(NamedTuple):
    """The place of an acknowledged record."""

    topic: str
    partition: int
    offset: int  # -1: the record is in the log, but brokers no longer remember where
    timestamp_ms: int  # -1: the leader has set it, as the topic demands


class Delivery:
    """Await it for the record's `RecordMetadata`; raises the error of a record that failed, as often as it is awaited."""

    __slots__ = ("_batch", "_index", "_timestamp_ms")

    def __init__(self, batch: RecordBatch, index: int, timestamp_ms: int) -> None:
        self._batch = batch
        self._index = index
        self._timestamp_ms = timestamp_ms

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        while self._located().outcome is None:
            yield from self._batch.wait().__await__()
        return self.result()

    def done(self) -> bool:
        return self._located().outcome is not None

    def _located(self) -> RecordBatch:
        """The batch that has the record now: a piece, if its batch was split."""
        while self._batch.pieces:
            for piece in self._batch.pieces:
                if self._index < piece.record_count:
                    break
                self._index -= piece.record_count
            self._batch = cast(RecordBatch, piece)
        return self._batch

    @property
    def stamp(self) -> RecordStamp | None:
        """Identifies the record to brokers; None: it has no stamp, or not yet. When the record is done, the stamp is
        final: if the record is in the log, now or later, then under this stamp."""
        stamp = self._located().stamp
        if stamp is None or stamp == NO_STAMP:
            return None
        return RecordStamp(stamp.producer_id, stamp.epoch, add_sequence(stamp.base_sequence, self._index))

    def result(self) -> RecordMetadata:
        """The outcome. Raises the record's error, or InvalidRequest where it is not done."""
        outcome, queue = self._located().outcome, self._batch.queue
        if outcome is None:
            raise InvalidRequest(f"a record of {queue.name} is not delivered yet: await it")
        if not isinstance(outcome, Delivered):
            raise outcome.error.with_traceback(None)
        offset = outcome.base_offset + self._index if outcome.base_offset >= 0 else -1
        by_leader = queue.topic.config.message_timestamp_type == APPEND_TIME
        return RecordMetadata(queue.topic.name, queue.partition, offset, -1 if by_leader else self._timestamp_ms)
