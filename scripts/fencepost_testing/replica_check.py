"""Looks at a partition from below: the bytes of its segment files on each broker's disk.

Pure: bytes in, findings out. `check_replica` wants whole batches, right CRCs, offsets without a hole, leader epochs
that never fall, and for each (producer id, epoch) sequences without a hole, a repeat or a step back. `check_same`
compares the replicas. This trusts no broker's word, and shares with the brokers' own recovery only the header's layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.record_batch import HEADER_BYTES, LENGTH_END, MAGIC, BatchHeader, check_batch
from fencepost_testing.log_check.findings import Findings, Kind
from fencepost_testing.log_check.sequence_order import KnownStamp, SequenceFinding, SequenceOrder

_MAGIC_AT = 16  # of a batch
_MAGIC_BYTE = bytes((MAGIC,))
_OFFSETS_AHEAD = 1 << 31  # a base offset further above the one that is expected is none


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
    empty_at: int = 0  # without a batch: where the first would stand, behind all that was deleted

    @property
    def start_offset(self) -> int:
        return self.batches[0].base_offset if self.batches else self.empty_at

    @property
    def end_offset(self) -> int:
        return self.batches[-1].end_offset if self.batches else self.empty_at

    def __str__(self) -> str:
        if not self.batches:
            return f"broker {self.broker} has no record"
        return f"broker {self.broker} has offsets {self.start_offset} to {self.end_offset - 1}"


Segment = tuple[int, bytes]  # base offset (the file's name), content


def batches_below(data: bytes, end_offset: int | None) -> Iterator[tuple[BatchHeader, memoryview]]:
    """The batches of a segment; where an end is given, those that begin below it: what follows may be half written.

    Raises FencepostError where the bytes are no batch.
    """
    view, position, header = memoryview(data), 0, None
    while position < len(data) and (end_offset is None or header is None or header.end_offset < end_offset):
        header = check_batch(view, position)
        yield header, view[position : position + header.size_bytes]
        position += header.size_bytes


def check_replica(
    broker: int, partition: str, segments: Iterable[Segment], *, end_offset: int | None = None, stopped: bool = False
) -> ReplicaSummary:
    """Every batch of one replica that begins below `end_offset`, its segments given in offset order.

    `stopped`: its broker was killed, or paused, at any moment, so the last batch may not have been written to its end. What
    a replica cannot tell then is whether such a batch was whole before: its length is the only witness.
    """
    summary = ReplicaSummary(broker, partition)
    findings = summary.findings

    def report(found: SequenceFinding) -> None:
        findings.add(found.kind, found.text, found.records, offset=found.offset)

    sequences: SequenceOrder | None = None
    for base_offset, data in segments:
        if not summary.batches:
            summary.empty_at = base_offset
        if end_offset is not None and base_offset >= end_offset:
            break
        name = f"broker {broker} {partition} segment {base_offset:020d}"
        if summary.batches and base_offset != summary.end_offset:
            findings.add(Kind.CORRUPT, f"{name} follows offset {summary.end_offset - 1}")
        expected, position = base_offset, 0
        last_leader_epoch = summary.batches[-1].leader_epoch if summary.batches else -1
        try:
            for header, batch in batches_below(data, end_offset):
                where = f"{name} offset {header.base_offset}"
                if header.base_offset != expected:
                    findings.add(Kind.CORRUPT, f"{where}: {expected} is expected there", offset=header.base_offset)
                if header.leader_epoch < last_leader_epoch:
                    text = f"{where}: leader epoch {header.leader_epoch} after {last_leader_epoch}"
                    findings.add(Kind.CORRUPT, text, offset=header.base_offset)
                expected, last_leader_epoch = header.end_offset, header.leader_epoch
                position += header.size_bytes
                digest = hashlib.blake2b(batch, digest_size=16).digest()
                summary.batches.append(StoredBatch(header.base_offset, header.end_offset, header.leader_epoch, digest))
                summary.records += header.record_count
                if sequences is None:
                    sequences = SequenceOrder(
                        f"broker {broker} {partition}", report, beginning_removed=summary.start_offset > 0
                    )
                if header.idempotent:
                    stamp = KnownStamp(header.producer_id, header.producer_epoch, header.base_sequence)
                    sequences.enter_stamp(stamp, header.base_offset, 0, count=header.record_count)
        except FencepostError as error:
            if stopped and _is_unfinished(data[position:], expected):
                continue  # a segment behind it does not begin where this one ends, which is told of there
            findings.add(Kind.CORRUPT, f"{name} after offset {expected - 1}: {error}", offset=expected)
    if sequences is not None:
        sequences.finish()
        summary.producers = set(sequences.epochs)
    return summary


def _is_unfinished(rest: bytes, offset: int) -> bool:
    """Whether these are the first bytes of the batch at `offset`, and nothing more: an append that was cut short."""
    if rest[:8] != offset.to_bytes(8)[: len(rest)] or rest[_MAGIC_AT : _MAGIC_AT + 1] not in (b"", _MAGIC_BYTE):
        return False
    if len(rest) >= LENGTH_END:
        size = LENGTH_END + int.from_bytes(rest[8:LENGTH_END], signed=True)
        if size < HEADER_BYTES or size <= len(rest):
            return False
    return not _holds_a_batch(rest, offset)


def _holds_a_batch(rest: bytes, offset: int) -> bool:
    """Whether a sound batch of a later offset stands anywhere in these bytes."""
    magic_at = rest.find(_MAGIC_BYTE, _MAGIC_AT + 1)
    while magic_at >= 0:
        position = magic_at - _MAGIC_AT
        if 0 < int.from_bytes(rest[position : position + 8]) - offset < _OFFSETS_AHEAD:
            with suppress(FencepostError):
                check_batch(rest, position)
                return True
        magic_at = rest.find(_MAGIC_BYTE, magic_at + 1)
    return False


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
            held_by = "; ".join(map(str, replicas))
            text = f"{where} ends at {replica.end_offset}, below the high watermark {high_watermark}: {held_by}"
            findings.add(Kind.DIVERGED, text)
        held = [batch for batch in replica.batches if start <= batch.base_offset < high_watermark]
        for ours, theirs in zip(held, wanted, strict=False):
            if ours != theirs:
                text = f"{where} differs from broker {model.broker} at offset {theirs.base_offset}"
                findings.add(Kind.DIVERGED, text, offset=theirs.base_offset)
                break
        else:
            if len(held) != len(wanted) and replica.end_offset >= high_watermark:
                findings.add(
                    Kind.DIVERGED, f"{where}: {len(held)} batches where broker {model.broker} has {len(wanted)}"
                )
    return findings


def check_older(
    replica: ReplicaSummary, model: ReplicaSummary, high_watermark: int, *, has_all: bool = False
) -> Findings:
    """A replica whose broker does not run has what another has, up to where it ends, or to what it appended in an older
    leader epoch and could not replicate: it will truncate that when it comes back.

    `has_all`: the leader counts on it for all that is committed (it is in sync, or eligible); then it ends nowhere below the
    high watermark, and has nothing else there. Of another one this cannot be known: how far it came before it stopped, so
    whether its end was cut off at a border of batches, and whether what it has of an older leader epoch was committed.
    """
    findings = Findings()
    where = f"broker {replica.broker} {replica.partition}, which does not run,"
    if has_all and replica.end_offset < high_watermark:
        text = (
            f"{where} ends at {replica.end_offset}, below the high watermark {high_watermark}, and the leader counts on it "
            f"for all below that: {replica}; {model}"
        )
        findings.add(Kind.DIVERGED, text)
    wanted = {batch.base_offset: batch for batch in model.batches if batch.base_offset < high_watermark}
    for held in replica.batches:
        if held.base_offset < model.start_offset or held.base_offset >= high_watermark:
            continue
        theirs = wanted.get(held.base_offset)
        if theirs == held:
            continue
        below = (batch.leader_epoch for batch in wanted.values() if batch.base_offset <= held.base_offset)
        last_known = max(below, default=-1)
        if held.leader_epoch < last_known and not has_all:
            break
        text = f"{where} differs from broker {model.broker} at offset {held.base_offset}"
        findings.add(Kind.DIVERGED, text, offset=held.base_offset)
        break
    return findings
