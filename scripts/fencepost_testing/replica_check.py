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
from fencepost_proto.protocol.record_batch import BatchHeader, check_batch
from fencepost_testing.log_check.findings import Findings, Kind
from fencepost_testing.log_check.sequence_order import KnownStamp, SequenceFinding, SequenceOrder


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
    broker: int, partition: str, segments: Iterable[Segment], *, end_offset: int | None = None
) -> ReplicaSummary:
    """Every batch of one replica that begins below `end_offset`, its segments given in offset order."""
    summary = ReplicaSummary(broker, partition)
    findings = summary.findings

    def report(found: SequenceFinding) -> None:
        findings.add(found.kind, found.text, found.records, offset=found.offset)

    sequences: SequenceOrder | None = None
    for base_offset, data in segments:
        if end_offset is not None and base_offset >= end_offset:
            break
        name = f"broker {broker} {partition} segment {base_offset:020d}"
        if summary.batches and base_offset != summary.end_offset:
            findings.add(Kind.CORRUPT, f"{name} follows offset {summary.end_offset - 1}")
        expected = base_offset
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
            findings.add(Kind.CORRUPT, f"{name} after offset {expected - 1}: {error}", offset=expected)
    if sequences is not None:
        sequences.finish()
        summary.producers = set(sequences.epochs)
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
                text = f"{where} differs from broker {model.broker} at offset {theirs.base_offset}"
                findings.add(Kind.DIVERGED, text, offset=theirs.base_offset)
                break
        else:
            if len(held) != len(wanted) and replica.end_offset >= high_watermark:
                findings.add(
                    Kind.DIVERGED, f"{where}: {len(held)} batches where broker {model.broker} has {len(wanted)}"
                )
    return findings


def check_older(replica: ReplicaSummary, model: ReplicaSummary, high_watermark: int) -> Findings:
    """A replica whose broker does not run has what another has, up to where it ends, or to what it appended in an older
    leader epoch and could not replicate: it will truncate that when it comes back.
    """
    findings = Findings()
    wanted = {batch.base_offset: batch for batch in model.batches if batch.base_offset < high_watermark}
    for held in replica.batches:
        if held.base_offset < model.start_offset or held.base_offset >= high_watermark:
            continue
        theirs = wanted.get(held.base_offset)
        if theirs == held:
            continue
        below = (batch.leader_epoch for batch in wanted.values() if batch.base_offset <= held.base_offset)
        last_known = max(below, default=-1)
        if held.leader_epoch < last_known:
            break
        where = f"broker {replica.broker} {replica.partition}, which is down,"
        text = f"{where} differs from broker {model.broker} at offset {held.base_offset}"
        findings.add(Kind.DIVERGED, text, offset=held.base_offset)
        break
    return findings
