"""Looks at a partition from below: the bytes of its segment files on each broker's disk.

Pure: bytes in, findings out. `check_replica` wants whole batches, right CRCs, offsets without a hole, leader epochs
that never fall, and for each (producer id, epoch) sequences without a hole, a repeat or a step back. `check_same`
compares the replicas. This trusts no broker's word, and shares with the brokers' own recovery only the header's layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.record_batch import MAX_SEQUENCE, BatchHeader, check_batch
from fencepost_testing.verdict import Findings, Kind

_SEQUENCES = MAX_SEQUENCE + 1


@dataclass(slots=True)
class _Sequences:
    """What one (producer id, epoch) has in a partition so far. Positions are sequences without the wrap at 2^31."""

    next_position: int
    holes: list[tuple[int, int]] = field(default_factory=list)  # [first, end) passed over, in order

    def add(self, base_sequence: int, count: int) -> tuple[int, int, int]:
        """(sequences repeated, sequences that come late, sequences passed over now)."""
        forward = (base_sequence - self.next_position) % _SEQUENCES
        behind = forward >= _SEQUENCES // 2
        first = self.next_position + forward - (_SEQUENCES if behind else 0)
        end = first + count
        passed_over = max(0, first - self.next_position)
        if passed_over:
            self.holes.append((self.next_position, first))
        late = self._fill(first, min(end, self.next_position))
        repeated = max(0, min(end, self.next_position) - first) - late
        self.next_position = max(self.next_position, end)
        return repeated, late, passed_over

    def _fill(self, first: int, end: int) -> int:
        filled, left = 0, []
        for hole_first, hole_end in self.holes:
            low, high = max(first, hole_first), min(end, hole_end)
            if low >= high:
                left.append((hole_first, hole_end))
                continue
            filled += high - low
            left += [part for part in ((hole_first, low), (high, hole_end)) if part[0] < part[1]]
        self.holes = left
        return filled


class _Producers:
    """Every producer's sequences in one partition, up to the batch last looked at."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.sequences: dict[tuple[int, int], _Sequences] = {}  # by (producer id, epoch)
        self._newest_epoch: dict[int, int] = {}

    def add(self, header: BatchHeader, where: str, *, beginning_removed: bool) -> None:
        """Where retention removed the beginning of the log, a producer's first batches may have gone with it."""
        producer, epoch, findings = header.producer_id, header.producer_epoch, self._findings
        who = f"{where}: producer {producer} epoch {epoch}"
        newest = self._newest_epoch.get(producer, 0)
        if epoch < newest:
            findings.add(Kind.REORDERED, f"{who} after epoch {newest}", header.record_count)
        self._newest_epoch[producer] = max(newest, epoch)
        known = self.sequences.get((producer, epoch))
        if known is None:
            known = _Sequences(header.base_sequence if beginning_removed else 0)
            self.sequences[producer, epoch] = known
        expected = known.next_position % _SEQUENCES
        repeated, late, passed_over = known.add(header.base_sequence, header.record_count)
        told = f"{who}: sequences {header.base_sequence} to {header.last_sequence} where {expected} is next"
        if repeated:
            findings.add(Kind.DUPLICATED, told, repeated)
        if late:
            findings.add(Kind.REORDERED, told, late)
        if passed_over:
            findings.add(Kind.GAP, told)


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """One batch of a replica: enough to compare it with another's."""

    base_offset: int
    end_offset: int
    leader_epoch: int
    digest: bytes  # of all its bytes


@dataclass(slots=True)
class ReplicaSummary:
    """What `check_replica` found in one replica."""

    broker: int
    partition: str
    batches: list[StoredBatch] = field(default_factory=list)
    records: int = 0
    producers: set[tuple[int, int]] = field(default_factory=set)  # (producer id, epoch)
    findings: Findings = field(default_factory=Findings)

    @property
    def start_offset(self) -> int:
        return self.batches[0].base_offset if self.batches else 0

    @property
    def end_offset(self) -> int:
        return self.batches[-1].end_offset if self.batches else 0


Segment = tuple[int, bytes]  # base offset (the file's name), content


def _batches_of(data: bytes) -> Iterator[tuple[BatchHeader, memoryview]]:
    """Raises FencepostError where the bytes are no batch."""
    view, position = memoryview(data), 0
    while position < len(data):
        header = check_batch(view, position)
        yield header, view[position : position + header.size_bytes]
        position += header.size_bytes


def check_replica(broker: int, partition: str, segments: Iterable[Segment]) -> ReplicaSummary:
    """Every batch of one replica, its segments given in offset order."""
    summary = ReplicaSummary(broker, partition)
    findings = summary.findings
    producers = _Producers(findings)
    for base_offset, data in segments:
        name = f"broker {broker} {partition} segment {base_offset:020d}"
        if summary.batches and base_offset != summary.end_offset:
            findings.add(Kind.CORRUPT, f"{name} follows offset {summary.end_offset - 1}")
        expected = base_offset
        last_leader_epoch = summary.batches[-1].leader_epoch if summary.batches else -1
        try:
            for header, batch in _batches_of(data):
                where = f"{name} offset {header.base_offset}"
                if header.base_offset != expected:
                    findings.add(Kind.CORRUPT, f"{where}: {expected} is expected there")
                if header.leader_epoch < last_leader_epoch:
                    findings.add(Kind.CORRUPT, f"{where}: leader epoch {header.leader_epoch} after {last_leader_epoch}")
                expected, last_leader_epoch = header.end_offset, header.leader_epoch
                digest = hashlib.blake2b(batch, digest_size=16).digest()
                summary.batches.append(StoredBatch(header.base_offset, header.end_offset, header.leader_epoch, digest))
                summary.records += header.record_count
                if header.idempotent:
                    producers.add(header, where, beginning_removed=summary.start_offset > 0)
        except FencepostError as error:
            findings.add(Kind.CORRUPT, f"{name} after offset {expected - 1}: {error}")
    summary.producers = set(producers.sequences)
    return summary


def check_same(replicas: list[ReplicaSummary], high_watermark: int) -> Findings:
    """Replicas of one partition hold the same bytes from the latest of their starts up to the high watermark."""
    findings = Findings()
    if not replicas:
        return findings
    start = max(replica.start_offset for replica in replicas)
    model = replicas[0]
    wanted = [batch for batch in model.batches if start <= batch.base_offset < high_watermark]
    for replica in replicas:
        where = f"broker {replica.broker} {replica.partition}"
        if replica.end_offset < high_watermark:
            findings.add(
                Kind.DIVERGED, f"{where} ends at {replica.end_offset}, below the high watermark {high_watermark}"
            )
        held = [batch for batch in replica.batches if start <= batch.base_offset < high_watermark]
        for ours, theirs in zip(held, wanted, strict=False):
            if ours != theirs:
                findings.add(
                    Kind.DIVERGED, f"{where} differs from broker {model.broker} at offset {theirs.base_offset}"
                )
                break
        else:
            if len(held) != len(wanted) and replica.end_offset >= high_watermark:
                findings.add(
                    Kind.DIVERGED, f"{where}: {len(held)} batches where broker {model.broker} has {len(wanted)}"
                )
    return findings
