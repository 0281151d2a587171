"""What one partition knows of its producers: the rules that make a retry harmless.

Theory of operation. For every producer id the state holds the epoch and the last five batches of that epoch. It is a fold
over the batches of the log, oldest first, so it can be derived again from the log (or from a snapshot and the rest of the
log) on any replica at any time. Two questions are asked of it:

- `check`, by a leader before it appends a batch that a client sent: is it new, a repeat, or wrong? It changes nothing.
- `record`, when a batch is stored (by leader, follower, recovery): the batch is now part of the log. `record` is `stage`
  and `apply`: `stage` computes what changes, without changing it, and raises where the batch cannot follow; `apply` cannot
  fail. So a log stages first, writes, and applies only what was written.

`check` answers in this order (count = records of the batch, last = last sequence known for the producer):

    epoch below the one known here, or below the fence      InvalidProducerEpoch
    no state, base sequence is not 0                        OutOfOrderSequenceNumber in a log that never held a record,
                                                            else UnknownProducerId
    no state or a newer epoch, base sequence 0              append
    newer epoch, base sequence is not 0                     OutOfOrderSequenceNumber
    exactly one of the five remembered batches              Duplicate
    the sequences of one of them, and other bytes           SequencesTaken
    wholly older than the remembered batches                DuplicateSequenceNumber
    base sequence = last + 1 (0 after 2^31-1)               append
    anything else: a gap, or an overlap in part             OutOfOrderSequenceNumber

A repeat is recognised by its CRC, too, which covers all that a client sends. A producer that wrote under this id
meanwhile (an id is no secret) has not written this batch: taken for its repeat it would be acknowledged, and not stored.
Snapshots of before version 3 have no CRCs; there the sequences decide.

`record` is more lenient in one place only. Replicas expire idle producers each by its own clock and its own log, so a
leader may have forgotten a producer that this replica still knows, and then accepts base sequence 0 from it again: such a
batch starts the entry afresh. And a replica that has forgotten a producer which its leader still knows (one that lags may
not have got its next batch yet) takes any sequence.

Expiry. A producer is forgotten when its last batch is committed and has been in the log for the expiration time, as far as
this process has seen (`expiry.py`, `idleness.py`): never because of a timestamp or of the clock on the wall. Entries
stand in the order of their last batches' offsets, so what expires is always the front of them: the state of a replica is
the fold of its log but for the producers whose last batch is below some offset. Named producers are kept for as long as
the name is known, so that `resume` says what is *known* not to be there.

Bound. Above MAX_PRODUCERS the front is forgotten much earlier: as soon as no repeat can come any more, which is when the
longest delivery timeout that a broker allows is over. What is younger is never forgotten, not even to make room:
with ROOM_FOR_THE_YOUNG more, the leader refuses new producers with ThrottlingQuotaExceeded (nothing is appended;
retriable). Only the leader refuses, when it is asked to append. Recording never forgets anyone, so that followers,
recovery and a later leader know whom the leader knew.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fencepost_node.log.state_machine import Pause, no_pause
from fencepost_proto.protocol.errors import (
    DuplicateSequenceNumber,
    InvalidProducerEpoch,
    InvariantBroken,
    OutOfOrderSequenceNumber,
    SequencesTaken,
    ThrottlingQuotaExceeded,
    UnknownProducerId,
)
from fencepost_proto.protocol.record_batch import MAX_SEQUENCE, BatchHeader

REMEMBERED_BATCHES = 5  # as many as a producer may have in flight
MAX_PRODUCERS = 50_000  # of one partition: about 50 MB where all have five batches
PRODUCERS_IN_A_TURN = 256  # looked at, encoded or decoded at a time: half a millisecond
ROOM_FOR_THE_YOUNG = 10_000  # beyond that, for those that must not be forgotten yet

_SEQUENCES = 2**31
_HALF_OF_SEQUENCES = 2**30
UNKNOWN_CRC = -1  # no batch has it, whatever its bytes are


class RememberedBatch(NamedTuple):
    """One of a producer's last batches. Sequences are inclusive; last < first where the batch spans the wrap."""

    first_sequence: int
    last_sequence: int
    base_offset: int
    timestamp_ms: int
    crc: int = UNKNOWN_CRC  # as it stands in the log

    @property
    def end_offset(self) -> int:
        return self.base_offset + ((self.last_sequence - self.first_sequence) & MAX_SEQUENCE) + 1


class ProducerEntry(NamedTuple):
    """One producer. 1 <= len(batches) <= 5, oldest first, sequences contiguous, offsets rising."""

    epoch: int
    wrapped: bool  # its sequences have passed 2^31-1 in this epoch: low ones may be newer than high ones
    batches: tuple[RememberedBatch, ...]

    @property
    def last(self) -> RememberedBatch:
        return self.batches[-1]

    @property
    def next_sequence(self) -> int:
        return (self.batches[-1].last_sequence + 1) & MAX_SEQUENCE


@dataclass(frozen=True, slots=True)
class Append:
    """The batch is new and comes next."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The batch is in the log already, at these offsets; answer so once it is committed."""

    base_offset: int
    last_offset: int

    @property
    def end_offset(self) -> int:
        return self.last_offset + 1


APPEND = Append()

Admit = Callable[[int], None]  # is given the id of a producer that is new here; raises to refuse it
CrcsAt = Callable[[int], tuple[int, ...]]  # those that the batch in hand can have where this is its newest timestamp

Staged = dict[int, ProducerEntry]  # what `apply` will set, the least recent first


class ProducerState:
    """The producers of one partition at one offset of its log."""

    __slots__ = ("_entries",)

    def __init__(self, entries: dict[int, ProducerEntry] | None = None) -> None:
        self._entries = {} if entries is None else entries  # the longest idle first

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        """The same producers with the same batches."""
        return isinstance(other, ProducerState) and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ProducerState({self._entries!r})"

    def get(self, producer_id: int) -> ProducerEntry | None:
        return self._entries.get(producer_id)

    def ids(self) -> list[int]:
        """Of every producer that is known."""
        return list(self._entries)

    def items(self) -> ItemsView[int, ProducerEntry]:
        """(producer id, entry) of every producer that is known, the longest idle first."""
        return self._entries.items()

    def latest(self) -> Iterator[tuple[int, ProducerEntry]]:
        """(producer id, entry), the one that wrote last first. While nothing is appended."""
        return reversed(self._entries.items())

    def copy(self) -> ProducerState:
        """Entries are values, so this costs no more than their references."""
        return ProducerState(dict(self._entries))

    # ---- The two questions ----

    def check(
        self,
        header: BatchHeader,
        *,
        ever_held_records: bool,
        fence_epoch: int = 0,
        admit: Admit | None = None,
        crcs_at: CrcsAt | None = None,
    ) -> Append | Duplicate:
        """What a leader does with a client's batch. `fence_epoch`: the lowest epoch that the controller allows; `admit` is
        asked about a producer that is new here, `crcs_at` about a repeat that does not have its original's CRC.

        Raises InvalidProducerEpoch, UnknownProducerId, OutOfOrderSequenceNumber, DuplicateSequenceNumber (SequencesTaken),
        ThrottlingQuotaExceeded. With each, nothing may be appended.
        """
        if not header.idempotent:
            return APPEND
        entry = self._entries.get(header.producer_id)
        known_epoch = fence_epoch if entry is None else max(entry.epoch, fence_epoch)
        if header.producer_epoch < known_epoch:
            raise InvalidProducerEpoch(
                f"epoch {header.producer_epoch} of producer {header.producer_id} is older than {known_epoch}"
            )
        if entry is None or header.producer_epoch > entry.epoch:
            self._check_first(entry, header, ever_held_records)
            if entry is None:
                self._check_room(header.producer_id)
                if admit is not None:
                    admit(header.producer_id)
            return APPEND
        first, last = header.base_sequence, header.last_sequence
        for batch in entry.batches:
            if batch.first_sequence == first and batch.last_sequence == last:
                _check_same(batch, header, crcs_at)
                return Duplicate(batch.base_offset, batch.end_offset - 1)
        if _is_older(entry, first, last):
            raise DuplicateSequenceNumber(
                f"sequences {first} to {last} of producer {header.producer_id} epoch {entry.epoch} are older than the "
                f"{len(entry.batches)} remembered batches, which begin at {entry.batches[0].first_sequence}"
            )
        if first != entry.next_sequence:
            raise OutOfOrderSequenceNumber(
                f"sequences {first} to {last} of producer {header.producer_id} epoch {entry.epoch}: "
                f"{entry.next_sequence} is next"
            )
        return APPEND

    def _check_first(self, entry: ProducerEntry | None, header: BatchHeader, ever_held_records: bool) -> None:
        """The first batch of a producer, or of its newer epoch."""
        if header.base_sequence != 0:
            told = (
                f"base sequence {header.base_sequence} of producer {header.producer_id} epoch {header.producer_epoch}: "
            )
            if entry is not None:
                raise OutOfOrderSequenceNumber(f"{told}a new epoch begins at 0; epoch {entry.epoch} is known")
            if ever_held_records:
                raise UnknownProducerId(f"{told}this partition does not know the producer")
            raise OutOfOrderSequenceNumber(f"{told}0 comes first in this partition, which never held a record")

    def _check_room(self, producer_id: int) -> None:
        if len(self._entries) >= MAX_PRODUCERS + ROOM_FOR_THE_YOUNG:
            raise ThrottlingQuotaExceeded(
                f"no room for producer {producer_id}: the partition holds {len(self._entries)} producers, and a repeat may "
                f"still come of each (max_delivery_timeout_ms)"
            )

    def record(self, header: BatchHeader, base_offset: int) -> None:
        """The batch is in the log at `base_offset`. Raises InvariantBroken where it cannot be."""
        self.apply(self.stage((header._replace(base_offset=base_offset),)))

    def stage(self, headers: Iterable[BatchHeader]) -> Staged:
        """What changes when these batches, at their headers' base offsets, follow in the log. Changes nothing yet.

        Raises InvariantBroken where a batch cannot follow what stands before it.
        """
        staged: Staged = {}
        for header in headers:
            if header.idempotent:
                producer_id = header.producer_id
                entry = staged.pop(producer_id, None) or self._entries.get(producer_id)
                staged[producer_id] = _next_entry(entry, header)
        return staged

    def apply(self, staged: Staged) -> None:
        """Take what `stage` computed from this state."""
        for producer_id, entry in staged.items():
            self._entries.pop(producer_id, None)
            self._entries[producer_id] = entry

    # ---- Forgetting ----

    def any_idle(self, expired_below: int, surplus_below: int) -> bool:
        """Whether `idle` may find a producer."""
        entry = next(iter(self._entries.values()), None)
        limit = max(expired_below, surplus_below) if len(self._entries) > MAX_PRODUCERS else expired_below
        return entry is not None and entry.last.base_offset < limit

    def idle(
        self,
        expired_below: int,
        surplus_below: int,
        high_watermark: int,
        is_kept: Callable[[int], bool],
        pause: Pause = no_pause,
    ) -> list[tuple[int, ProducerEntry]]:
        """Whom to forget, the longest idle first. It takes a while and changes nothing: call it on a copy.

        Those whose last batch is below the high watermark and below `expired_below`; where there are more than
        MAX_PRODUCERS, also as many as that is too many below `surplus_below`. Never one of which `is_kept` says so.
        `pause` is called after every PRODUCERS_IN_A_TURN: a thread that looks at many of them lets others run.
        """
        surplus = len(self._entries) - MAX_PRODUCERS
        found: list[tuple[int, ProducerEntry]] = []
        for number, (producer_id, entry) in enumerate(self._entries.items(), 1):
            if number % PRODUCERS_IN_A_TURN == 0:
                pause()
            limit = max(expired_below, surplus_below) if len(found) < surplus else expired_below
            if entry.last.base_offset >= limit or entry.last.end_offset > high_watermark:
                break
            if not is_kept(producer_id):
                found.append((producer_id, entry))
        return found

    def forget(self, idle: Iterable[tuple[int, ProducerEntry]]) -> int:
        """Forget those that are still as `idle` saw them. Returns how many.

        The entries are replaced as a whole: a reader in another thread keeps a consistent view.
        """
        kept = dict(self._entries)
        for producer_id, entry in idle:
            if kept.get(producer_id) is entry:
                del kept[producer_id]
        forgotten = len(self._entries) - len(kept)
        self._entries = kept
        return forgotten


def _check_same(batch: RememberedBatch, header: BatchHeader, crcs_at: CrcsAt | None) -> None:
    """Raises SequencesTaken where the batch in hand has the sequences of one that it does not repeat."""
    if batch.crc in (UNKNOWN_CRC, header.crc):
        return
    if crcs_at is None or batch.crc not in crcs_at(batch.timestamp_ms):
        raise SequencesTaken(
            f"sequences {header.base_sequence} to {header.last_sequence} of producer {header.producer_id} epoch "
            f"{header.producer_epoch} are those of another batch at offset {batch.base_offset}: CRC {header.crc:#010x} is "
            f"not {batch.crc:#010x}, so someone else writes under this id, or uses numbers twice"
        )


def _next_entry(entry: ProducerEntry | None, header: BatchHeader) -> ProducerEntry:
    """A producer's entry after one more batch."""
    batch = RememberedBatch(
        header.base_sequence, header.last_sequence, header.base_offset, header.max_timestamp, header.crc
    )
    spans_wrap = batch.last_sequence < batch.first_sequence
    if entry is not None and header.producer_epoch == entry.epoch and batch.first_sequence == entry.next_sequence:
        wrapped = entry.wrapped or spans_wrap or batch.first_sequence == 0
        return ProducerEntry(entry.epoch, wrapped, (*entry.batches[1 - REMEMBERED_BATCHES :], batch))
    if entry is None or batch.first_sequence == 0:
        return ProducerEntry(header.producer_epoch, spans_wrap, (batch,))
    raise InvariantBroken(
        f"batch at offset {header.base_offset} of producer {header.producer_id} has epoch {header.producer_epoch} and "
        f"base sequence {header.base_sequence}; after epoch {entry.epoch} that is not {entry.next_sequence}"
    )


def _is_older(entry: ProducerEntry, first_sequence: int, last_sequence: int) -> bool:
    """Whether the whole batch comes before the remembered ones.

    Only where sequences have wrapped may a higher number be the older one; then whichever way round is shorter counts,
    and the window must not reach so far round that it meets the batch.
    """
    oldest = entry.batches[0].first_sequence
    if not entry.wrapped:
        return first_sequence <= last_sequence < oldest
    behind = (oldest - first_sequence) & MAX_SEQUENCE
    count = ((last_sequence - first_sequence) & MAX_SEQUENCE) + 1
    window = sum(batch.end_offset - batch.base_offset for batch in entry.batches)
    return count <= behind < _HALF_OF_SEQUENCES and behind + window <= _SEQUENCES
