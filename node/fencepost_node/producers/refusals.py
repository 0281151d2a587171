"""The latch: a broker's own refusal never makes a producer's later batches look out of order. Pure.

A producer has several batches on their way. Where one is refused for a reason that passes (this broker does not lead any
more, too few replicas are in sync, no room on the disk), those behind it arrive a moment later, perhaps when the reason
has passed. Checked on its own, each would be told OUT_OF_ORDER_SEQUENCE_NUMBER for a gap that the refusal has made.
librdkafka then takes a new epoch for every partition and may send what is in a log already once more, under numbers
that no broker can recognise; kafka-python, aiokafka and kafkajs give the sends up.

So after a retriable refusal of a batch, every later batch of that producer, epoch and partition is refused with the same
error until the refused one has come back, and then until each that was refused behind it has:

    batch                                     while one is awaited (`awaited`: its base sequence)
    of a newer epoch                          the latch opens
    of an older epoch, or an earlier one      checked as usual: it may be a repeat
    the awaited one                           checked as usual; once it is in the log, the one behind it is awaited
    a later one                               refused as the awaited one was

The latch opens once all that were refused have come back, after a refusal for a reason that does not pass, and after
FORGOTTEN_AFTER_S in which none came. G14 rests on it: a producer that has a few batches in flight and keeps their order
is never told OUT_OF_ORDER because of a refusal of the broker's own.

It belongs to one connection: that is where batches stand in an order, and so no one holds up another's producer by writing
under its id. It is bounded by MAX_LATCHES for each.
"""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_proto.protocol.errors import FencepostError, OutOfOrderSequenceNumber
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
    """The latches of one connection. False where there are none: nothing is to be asked then."""

    __slots__ = ("_latches",)

    def __init__(self) -> None:
        self._latches: dict[tuple[Place, int], _Latch] = {}  # by place and producer id; the oldest first

    def __len__(self) -> int:
        return len(self._latches)

    def check(self, place: Place, header: BatchHeader, now: float) -> None:
        """A batch has come. Raises the error of an earlier one that was refused and is awaited."""
        latch = self._latches.get((place, header.producer_id))
        if latch is None:
            return
        if header.producer_epoch > latch.epoch or now >= latch.open_at:
            del self._latches[place, header.producer_id]
        elif header.producer_epoch == latch.epoch and _is_later(header.base_sequence, latch.awaited):
            latch.open_at = now + FORGOTTEN_AFTER_S
            end = add_sequence(header.base_sequence, header.record_count)
            if _is_later(end, latch.refused_below):
                latch.refused_below = end
            raise latch.error

    def passed(self, place: Place, header: BatchHeader) -> None:
        """The batch is in the log: appended, or recognised."""
        latch = self._latches.get((place, header.producer_id))
        if latch is None or header.producer_epoch != latch.epoch or header.base_sequence != latch.awaited:
            return
        latch.awaited = add_sequence(header.base_sequence, header.record_count)
        if not _is_later(latch.refused_below, latch.awaited):
            del self._latches[place, header.producer_id]

    def refused(self, place: Place, header: BatchHeader, error: FencepostError, now: float) -> None:
        """The batch was refused, not by `check`, and nothing was appended."""
        if not header.idempotent:
            return
        key = (place, header.producer_id)
        latch = self._latches.get(key)
        passes = error.retriable and not isinstance(error, OutOfOrderSequenceNumber)
        if latch is None or header.producer_epoch > latch.epoch:
            if passes:
                self._make_room()
                end = add_sequence(header.base_sequence, header.record_count)
                self._latches.pop(key, None)
                self._latches[key] = _Latch(
                    header.producer_epoch, header.base_sequence, end, error, now + FORGOTTEN_AFTER_S
                )
        elif header.producer_epoch == latch.epoch and not _is_later(header.base_sequence, latch.awaited):
            if passes:  # the awaited one once more, or one before it
                latch.awaited, latch.error = header.base_sequence, error
                latch.open_at = now + FORGOTTEN_AFTER_S
            elif header.base_sequence == latch.awaited:
                del self._latches[key]

    def _make_room(self) -> None:
        if len(self._latches) >= MAX_LATCHES:
            del self._latches[next(iter(self._latches))]


def _is_later(sequence: int, other: int) -> bool:
    return 0 < (sequence - other) & MAX_SEQUENCE < _HALF_OF_SEQUENCES
