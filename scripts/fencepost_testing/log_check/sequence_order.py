"""Each producer's sequence numbers, followed through one partition's log.

In a right log an epoch's sequences begin at 0 and rise by one, 0 follows 2^31 - 1, and no epoch follows a newer one. What
is found otherwise:

- DUPLICATED: a sequence that is in the log before;
- REORDERED: a sequence that was passed over before, or an epoch below one before;
- GAP: sequences that were passed over, and that nothing in the log can be. Where the stamps of some records are not known,
  a gap is certain once the offsets at which the missing sequences may stand are fewer than they are.

Inside, sequences are *positions*: numbers that go on rising where sequences wrap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from fencepost_testing.log_check.findings import Kind

MAX_GAPS = 1_000  # of one producer and epoch that may still be filled by a record that comes late
NO_SOURCE = -1
_SEQUENCES = 1 << 31  # 0 follows the last of them


class KnownStamp(NamedTuple):
    """What identifies a record to brokers; as the client's RecordStamp, without loading the client."""

    producer_id: int
    epoch: int
    sequence: int

    def __str__(self) -> str:
        return f"producer {self.producer_id} epoch {self.epoch} sequence {self.sequence}"


class SequenceFinding(NamedTuple):
    """One thing that is wrong, met at `offset`."""

    kind: Kind
    text: str
    records: int
    offset: int
    before: int  # source of the record before, or NO_SOURCE
    source: int  # … and of the record that shows it


class _Entry(NamedTuple):
    """What is entered now."""

    stamp: KnownStamp
    records: int
    offset: int
    source: int
    unstamped: int


@dataclass(slots=True)
class _Gap:
    """Sequences that were passed over."""

    first_sequence: int
    length: int
    missing: int
    unstamped: int  # offsets at which some of them may stand
    before: int  # source of what stands before it, or NO_SOURCE
    after: _Entry  # what stands behind it
    left: list[tuple[int, int]]  # the positions that are missing still: [first, end)

    def fill(self, first: int, end: int) -> int:
        """How many of these positions are missing; they are not any more."""
        filled, left = 0, []
        for left_first, left_end in self.left:
            low, high = max(first, left_first), min(end, left_end)
            if low >= high:
                left.append((left_first, left_end))
                continue
            filled += high - low
            left += [part for part in ((left_first, low), (high, left_end)) if part[0] < part[1]]
        self.left = left
        self.missing -= filled
        return filled


@dataclass(slots=True)
class _Epoch:
    """One producer in one epoch, as far as the log has been followed."""

    next_position: int  # behind the highest
    highest: int = NO_SOURCE
    last: int = NO_SOURCE
    last_end: int = 0  # position behind the last
    unstamped: int = 0  # below the highest
    gaps: deque[_Gap] = field(default_factory=deque)
    forgotten_below: int = 0  # position; of gaps below it nothing is known any more


@dataclass(slots=True)
class _Producer:
    epoch: int  # its highest
    last: int  # source, of that epoch
    unstamped: int = 0  # below `last`
    epochs: dict[int, _Epoch] = field(default_factory=dict)


class SequenceOrder:
    """Enter every stamped record or batch of one partition in the order of offsets, then `finish`.

    `beginning_removed`: retention has taken the log's beginning, and perhaps with it that of any epoch.
    """

    def __init__(
        self, log_name: str, report: Callable[[SequenceFinding], None], *, beginning_removed: bool = False
    ) -> None:
        self._log_name = log_name
        self._report = report
        self._beginning_removed = beginning_removed
        self._producers: dict[int, _Producer] = {}

    @property
    def epochs(self) -> Collection[tuple[int, int]]:
        """(producer id, epoch) of all that were entered."""
        return [(producer_id, epoch) for producer_id, known in self._producers.items() for epoch in known.epochs]

    def enter_stamp(self, stamp: KnownStamp, offset: int, source: int, *, count: int = 1, unstamped: int = 0) -> None:
        """`count` records from that sequence and offset on. `source` is the caller's number for them.

        `unstamped`: how many offsets below may hold records whose stamps are not known.
        """
        producer_id, producer_epoch, sequence = stamp
        producer = self._producers.get(producer_id)
        if producer is None:
            producer = self._producers[producer_id] = _Producer(producer_epoch, NO_SOURCE)
        entry = _Entry(stamp, count, offset, source, unstamped)
        if producer_epoch < producer.epoch:
            self._add(Kind.REORDERED, entry, f"{stamp} comes after epoch {producer.epoch}", count, producer.last)
        epoch = producer.epochs.get(producer_epoch)
        if epoch is None:
            begins_at = sequence if self._beginning_removed else 0
            epoch = producer.epochs[producer_epoch] = _Epoch(begins_at, unstamped=producer.unstamped)
            first = sequence
        else:
            forward = (sequence - epoch.next_position) % _SEQUENCES
            first = epoch.next_position + forward - (_SEQUENCES if forward >= _SEQUENCES // 2 else 0)
        self._enter(epoch, entry, first)
        if producer_epoch >= producer.epoch:
            producer.epoch, producer.last, producer.unstamped = producer_epoch, source, unstamped

    def _enter(self, epoch: _Epoch, entry: _Entry, first: int) -> None:
        next_position, end = epoch.next_position, first + entry.records
        if first < next_position:
            self._enter_again(epoch, entry, first, min(end, next_position))
        elif first > next_position:
            self._pass_over(epoch, entry, first)
        if end > next_position:
            epoch.next_position, epoch.highest, epoch.unstamped = end, entry.source, entry.unstamped
        epoch.last, epoch.last_end = entry.source, end

    def _pass_over(self, epoch: _Epoch, entry: _Entry, first: int) -> None:
        missing_from = epoch.next_position
        epoch.gaps.append(
            _Gap(
                first_sequence=missing_from % _SEQUENCES,
                length=first - missing_from,
                missing=first - missing_from,
                unstamped=entry.unstamped - epoch.unstamped,
                before=epoch.highest,
                after=entry,
                left=[(missing_from, first)],
            )
        )
        if len(epoch.gaps) > MAX_GAPS:
            forgotten = epoch.gaps.popleft()
            epoch.forgotten_below = max((end for _, end in forgotten.left), default=epoch.forgotten_below)
            self._report_gap(forgotten)

    def _enter_again(self, epoch: _Epoch, entry: _Entry, first: int, end: int) -> None:
        """Positions that have been passed before: in the log already, or late."""
        late = sum(gap.fill(first, end) for gap in epoch.gaps)
        late += max(0, min(end, epoch.forgotten_below) - first)
        repeated = end - first - late
        if repeated > 0:
            which = f"{entry.stamp} and {repeated - 1} more are" if repeated > 1 else f"{entry.stamp} is"
            text = f"{which} in the log before; sequence {epoch.next_position % _SEQUENCES} is next"
            self._add(Kind.DUPLICATED, entry, text, repeated, epoch.last)
        if late > 0 and first < epoch.last_end:
            text = f"{entry.stamp} comes after sequence {(epoch.last_end - 1) % _SEQUENCES}"
            self._add(Kind.REORDERED, entry, text, late, epoch.last)

    def _add(self, kind: Kind, entry: _Entry, text: str, count: int, before: int) -> None:
        text = f"{self._log_name} offset {entry.offset}: {text}"
        self._report(SequenceFinding(kind, text, count, entry.offset, before, entry.source))

    def finish(self) -> None:
        """After the last record: gaps that nothing has filled."""
        for producer in self._producers.values():
            for epoch in producer.epochs.values():
                for gap in epoch.gaps:
                    self._report_gap(gap)

    def _report_gap(self, gap: _Gap) -> None:
        if gap.missing <= gap.unstamped:
            return
        first, last = gap.first_sequence, (gap.first_sequence + gap.length - 1) % _SEQUENCES
        which = f"sequence {last}" if gap.length == 1 else f"{gap.missing} of the sequences {first}-{last}"
        (producer_id, producer_epoch, sequence), offset = gap.after.stamp, gap.after.offset
        text = (
            f"{self._log_name}: {which} of producer {producer_id} epoch {producer_epoch} cannot be in the log before "
            f"sequence {sequence} at offset {offset}"
        )
        self._report(SequenceFinding(Kind.GAP, text, 1, offset, gap.before, gap.after.source))
