"""After an unclean election the elected log is the truth: where it parts from what was committed, and what has gone with it.

An operator is shown of each replica below which offset nothing is lost if it is elected, and elects one. What the elected
broker holds when it begins to lead is the partition's past from then on, also where that is another one than what was
committed. What was committed and is not in it is *lost*, as the operator has ordered; all below that offset must be there.
(The tip of the log, its last leader epoch and its end, tells less: a leader may commit batches of an older epoch, and append
none of its own, while a log that it does not have ends with a batch of an epoch between.)

To know the past of a log below its start, the judge keeps for each batch which one came before it, as it was first seen: one
leader appends a batch, behind its own log, and no other log ever holds it behind anything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tests.simulation.logview import Batch, LogView

Stamp = tuple[int, int, int]  # producer id, producer epoch, sequence


@dataclass(slots=True)
class Past:
    """What the judge knows of one partition's past, beyond what is committed."""

    predecessors: dict[Batch, Batch] = field(default_factory=dict)
    leaders: dict[int, int] = field(default_factory=dict)  # leader epoch -> broker
    elections: list[int] = field(default_factory=list)  # leader epochs of unclean elections
    tainted_epoch: int = -1  # under which unsynced data was lost last
    elected_at: float = -math.inf  # when the last of them was
    pending: int = -1  # the last of them, until its leader begins: then its log is looked at
    shown: dict[int, int] = field(default_factory=dict)  # broker -> the offset below which nothing was to be lost
    estranged: dict[int, None] = field(default_factory=dict)  # brokers whose logs may be those of before
    lost: list[Batch] = field(default_factory=list)  # committed once, and not any more
    unseen: dict[Batch, None] = field(default_factory=dict)  # acknowledged by leaders whose files could not be compared

    @property
    def epoch(self) -> int:
        """Leaders of older epochs than this have been overruled. -1: by no one."""
        return self.elections[-1] if self.elections else -1

    def led_between(self, epoch: int, later: int) -> bool:
        """Whether someone has led after the one leader epoch and before the other."""
        return any(epoch < led < later for led in self.leaders)

    def overruled(self, broker_id: int, leader_epoch: int) -> bool:
        """Whether a broker that takes this for the leader epoch still acts on what was the truth before."""
        return bool(self.elections) and (leader_epoch < self.epoch or self.leaders.get(leader_epoch) != broker_id)

    def seen(self, view: LogView, broker_id: int) -> str:
        """The view has just met its last batch. Returns what is wrong with its place, empty: nothing."""
        batch = view.batches[-1]
        before = view.batches[-2] if len(view.batches) > 1 else None
        if before is None and self.leaders.get(batch.leader_epoch) == broker_id:
            before = view.before  # a leader whose log retention has emptied
        if before is None:
            return ""
        known = self.predecessors.setdefault(batch, before)
        return f"holds {batch} behind {before}; another log holds it behind {known}" if known != before else ""

    def below(self, batch: Batch, committed: list[Batch]) -> list[Batch] | None:
        """All that ever stood before `batch`, from offset 0 on. None: no one has seen it."""
        found: list[Batch] = []
        while batch.base_offset > 0:
            before = self.predecessors.get(batch)
            if before is None:
                return None
            index = index_of(committed, before.base_offset)
            if index < len(committed) and committed[index] == before:
                return [*committed[: index + 1], *reversed(found)]
            found.append(before)
            batch = before
        return found[::-1]

    def below_start(self, view: LogView, committed: list[Batch]) -> list[Batch] | None:
        """All that ever stood below the log's start. None: no one has seen it."""
        if view.start_offset == 0:
            return []
        if view.batches:
            known = self.below(view.batches[0], committed)
        elif view.before is not None and (below := self.below(view.before, committed)) is not None:
            known = [*below, view.before]
        else:
            known = None
        if known is None and not self.elections:
            known = committed[: index_of(committed, view.start_offset)]
        return known

    def unseen_and_gone(self, held: list[Batch], epoch: int, *, append_time: bool) -> list[Batch]:
        """Of what leaders of before `epoch` acknowledged unseen: what is not in the log that is the truth from now on, and
        is unseen no more. `append_time`: leaders have written their own time into batches, and so other CRCs."""

        def identity(batch: Batch) -> tuple[int, ...]:
            return _identity(batch._replace(crc=0) if append_time else batch)

        kept = {identity(batch) for batch in held}
        gone = [batch for batch in self.unseen if batch.leader_epoch < epoch and identity(batch) not in kept]
        for batch in gone:
            del self.unseen[batch]
        return gone

    def is_lost(self, stamp: Stamp) -> bool:
        producer_id, epoch, sequence = stamp
        return any(
            (batch.producer_id, batch.producer_epoch) == (producer_id, epoch)
            and (
                batch.base_sequence <= sequence <= batch.last_sequence
                if batch.base_sequence <= batch.last_sequence
                else sequence >= batch.base_sequence or sequence <= batch.last_sequence
            )
            for batch in self.lost
        )


def _identity(batch: Batch) -> tuple[int, ...]:
    """What an answer tells of a batch: all but the leader epoch under which it was appended."""
    return (
        batch.base_offset,
        batch.end_offset,
        batch.crc,
        batch.producer_id,
        batch.producer_epoch,
        batch.base_sequence,
    )


def common(one: list[Batch], other: list[Batch]) -> int:
    """How many batches two pasts have in common."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


def index_of(batches: list[Batch], offset: int) -> int:
    """Of the first batch that begins at `offset` or later."""
    low, high = 0, len(batches)
    while low < high:
        middle = (low + high) // 2
        if batches[middle].base_offset < offset:
            low = middle + 1
        else:
            high = middle
    return low
