"""The latch: a broker's own refusal never makes a producer's later batches look out of order. Pure.

A producer has several batches on their way. Where one is refused for a reason that passes (this broker does not lead any
more, too few replicas are in sync, no room on the disk), those behind it arrive a moment later, perhaps when the reason
has passed. Checked on its own, each would be told OUT_OF_ORDER_SEQUENCE_NUMBER for a gap that the refusal has made.
librdkafka then takes a new epoch for every partition and may send what is in a log already once more, under numbers
that no broker can recognise; kafka-python, aiokafka and kafkajs give the sends up.

So a retriable refusal of a batch is remembered: it is *awaited*. While it is, a later batch of its producer, epoch and
partition that would be told of a gap is refused with the same error instead, until the awaited one has come back, and then
until each that was refused behind it has. A batch that may be appended is appended, whatever is awaited: the one before
it may have come on another connection.

    batch                                     while one is awaited
    may be appended, or is a repeat           it is; where it is the awaited one, the one behind it is awaited
    later, and there is a gap before it       refused as the awaited one was
    refused for a reason that passes          refused so; where it is the awaited one or an earlier one, it is awaited
    the awaited one, refused for good         refused so; nothing is awaited any more
    of a newer epoch                          nothing is awaited any more

Nor is anything awaited once all that were refused have come back, or FORGOTTEN_AFTER_S after the awaited one was refused
last: a producer that has given it up learns of its gap then. G14 rests on this: a producer that has a few batches in flight
and keeps their order is never told OUT_OF_ORDER because of a refusal of the broker's own.

It belongs to one connection: that is where batches stand in an order, and so no one holds up another's producer by writing
under its id. It is bounded by MAX_LATCHES for each.
"""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_proto.protocol.errors import FencepostError, OutOfOrderSequenceNumber, UnknownProducerId
from fencepost_proto.protocol.record_batch import MAX_SEQUENCE, BatchHeader, add_sequence

FORGOTTEN_AFTER_S = 30.0  # longer than a retry's pause, and than a cut that a connection outlives
MAX_LATCHES = 256  # of one connection: producers times partitions; above that the oldest opens
_HALF_OF_SEQUENCES = 2**30

Place = tuple[str, int]  # topic (as the client names it) and partition


@dataclass(slots=True)
class _Latch:
    """What one producer is to send again to one partition."""

    epoch: int
    awaited: int  # base sequence
    refused_below: int  # one past the last sequence that was refused
    error: FencepostError
    open_at: float


class Refusals:
    """The latches of one connection. False where there are none: then no batch that passes is to be told of."""

    __slots__ = ("_latches",)

    def __init__(self) -> None:
        self._latches: dict[tuple[Place, int], _Latch] = {}  # by place and producer id; the oldest first

    def __len__(self) -> int:
        return len(self._latches)

    def passed(self, place: Place, header: BatchHeader, now: float) -> None:
        """The batch is in the log: appended, or recognised."""
        latch = self._latches.get((place, header.producer_id))
        if latch is None or header.producer_epoch != latch.epoch or header.base_sequence != latch.awaited:
            return
        latch.awaited = add_sequence(header.base_sequence, header.record_count)
        latch.open_at = now + FORGOTTEN_AFTER_S
        if not _is_later(latch.refused_below, latch.awaited):
            del self._latches[place, header.producer_id]

    def answer(self, place: Place, header: BatchHeader, error: FencepostError, now: float) -> FencepostError:
        """The batch is refused for `error`, and nothing is appended. Returns the error that its producer is to be told."""
        if not header.idempotent:
            return error
        key = (place, header.producer_id)
        latch = self._latches.get(key)
        if latch is not None and (header.producer_epoch > latch.epoch or now >= latch.open_at):
            del self._latches[key]
            latch = None
        has_gap = isinstance(error, OutOfOrderSequenceNumber | UnknownProducerId)
        passes = error.retriable and not has_gap
        end = add_sequence(header.base_sequence, header.record_count)
        if latch is None:
            if passes:
                self._make_room()
                open_at = now + FORGOTTEN_AFTER_S
                self._latches[key] = _Latch(header.producer_epoch, header.base_sequence, end, error, open_at)
            return error
        if header.producer_epoch < latch.epoch:
            return error
        if _is_later(header.base_sequence, latch.awaited):
            if (has_gap or passes) and _is_later(end, latch.refused_below):
                latch.refused_below = end
            return latch.error if has_gap else error
        if passes:  # the awaited one once more, or one before it
            latch.awaited, latch.error, latch.open_at = header.base_sequence, error, now + FORGOTTEN_AFTER_S
        elif header.base_sequence == latch.awaited:
            del self._latches[key]
        return error

    def _make_room(self) -> None:
        if len(self._latches) >= MAX_LATCHES:
            del self._latches[next(iter(self._latches))]


def _is_later(sequence: int, other: int) -> bool:
    return 0 < (sequence - other) & MAX_SEQUENCE < _HALF_OF_SEQUENCES
