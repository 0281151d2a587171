"""Batches that a fault has refused, so that its client is treated as by a broker that refuses them itself.

A producer has several batches on their way. If one is refused by a fault and those behind it were passed on, the broker
would tell each of them of a gap, which is no answer to a refusal that passes: Fencepost's brokers refuse them with the same
error (`fencepost_node.producers.refusals`). So they are refused here, until the first has come back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fencepost_proto.protocol.errors import CorruptMessage, UnsupportedForMessageFormat
from fencepost_proto.protocol.record_batch import MAX_SEQUENCE, BatchHeader, Buffer, add_sequence, read_header

MAX_KEPT = 1_024  # producers times partitions of one connection
_HALF_OF_SEQUENCES = 2**30

Place = tuple[str, int]


@dataclass(slots=True)
class _Refused:
    epoch: int
    awaited: int  # base sequence of the first that was refused and has not come back
    below: int  # one past the last sequence that was refused
    error: int


@dataclass(slots=True)
class RefusedBatches:
    """Of one connection."""

    _kept: dict[tuple[Place, int], _Refused] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._kept)

    def refuse(self, place: Place, records: Buffer, error: int) -> None:
        """A fault refuses this batch with an error after which its producer sends it again."""
        header = header_of(records)
        if header is None or not header.idempotent:
            return
        key, end = (place, header.producer_id), add_sequence(header.base_sequence, header.record_count)
        kept = self._kept.get(key)
        if kept is None or kept.epoch != header.producer_epoch:
            if len(self._kept) >= MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = _Refused(header.producer_epoch, header.base_sequence, end, error)
        elif _is_later(end, kept.below):
            kept.below = end

    def error_for(self, place: Place, records: Buffer) -> int:
        """The error that a batch is to get because one before it was refused; 0: it is to be passed on."""
        header = header_of(records)
        if header is None or (kept := self._kept.get((place, header.producer_id))) is None:
            return 0
        if kept.epoch != header.producer_epoch:
            del self._kept[place, header.producer_id]
            return 0
        end = add_sequence(header.base_sequence, header.record_count)
        if _is_later(header.base_sequence, kept.awaited):
            if _is_later(end, kept.below):
                kept.below = end
            return kept.error
        if header.base_sequence == kept.awaited:
            kept.awaited = end
            if not _is_later(kept.below, end):
                del self._kept[place, header.producer_id]
        return 0


def header_of(records: Buffer) -> BatchHeader | None:
    """None: there is none."""
    try:
        return read_header(records)
    except (CorruptMessage, UnsupportedForMessageFormat):
        return None


def _is_later(sequence: int, other: int) -> bool:
    return 0 < (sequence - other) & MAX_SEQUENCE < _HALF_OF_SEQUENCES
