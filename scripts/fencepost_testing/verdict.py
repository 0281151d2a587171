"""What can be wrong with a log, in one list for all who look: the history check, the replica check, and the ledgers.

Pure: values in, findings out. `of_history` sorts what `history_check` finds into these kinds. `RecordCheck` is for
`fencepost workload verify`, which has no history, only ledgers: it gets every record in offset order and compares it with
them. Ids of one run rise within a partition: one producer sent them in that order. `replica_check` looks at the same log
from below, at the bytes on the brokers' disks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fencepost.history import PolledRecord
from fencepost_testing.history_check import Anomaly, Verdict
from fencepost_testing.ledger import NO_OFFSET, Ledger, Mark, Outcome, read_mark

MAX_EXAMPLES = 20  # findings told in words; all are counted


class Kind(StrEnum):
    """What can be wrong."""

    LOST = "lost"  # acknowledged, and not in the log
    DUPLICATED = "duplicated"  # in the log more than once: a record, or a sequence number
    REORDERED = "reordered"  # in the log after something that was sent later
    GAP = "gaps"  # a hole in a producer's sequences
    RESURRECTED = "resurrected"  # definitely refused, and in the log nevertheless
    MOVED = "moved"  # not at the offset that was acknowledged
    MISPLACED = "misplaced"  # a key in two partitions
    FOREIGN = "foreign"  # a record that no workload wrote
    CORRUPT = "corrupt"  # bytes that are no batch, a bad CRC, a hole in the offsets
    DIVERGED = "diverged"  # replicas differ below the high watermark


@dataclass(slots=True)
class Findings:
    """How often each thing is wrong, and the first examples in words."""

    counts: Counter[Kind] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, kind: Kind, text: str, count: int = 1) -> None:
        self.counts[kind] += count
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(f"{kind}: {text}")

    def merge(self, other: Findings) -> None:
        self.counts += other.counts
        self.examples = (self.examples + other.examples)[:MAX_EXAMPLES]

    @property
    def clean(self) -> bool:
        return self.counts.total() == 0


# ---- What a history says ----

# Of an anomaly in what the log holds. The others are in what a consumer was handed.
KIND_OF: Mapping[Anomaly, Kind] = {
    Anomaly.LOST_WRITE: Kind.LOST,
    Anomaly.UNSEEN: Kind.LOST,
    Anomaly.DUPLICATE: Kind.DUPLICATED,
    Anomaly.REORDERED: Kind.REORDERED,
    Anomaly.NONMONOTONIC_SEND: Kind.REORDERED,
    Anomaly.SEQUENCE_GAP: Kind.GAP,
    Anomaly.G1A: Kind.RESURRECTED,
    Anomaly.NOT_LOST: Kind.RESURRECTED,
    Anomaly.MISPLACED_KEY: Kind.MISPLACED,
    Anomaly.PHANTOM: Kind.FOREIGN,
}


def count(verdict: Verdict, kind: Kind) -> int:
    """How often a history shows it."""
    return sum(number for anomaly, number in verdict.counts.items() if KIND_OF.get(anomaly) is kind)


def of_history(verdict: Verdict) -> tuple[Findings, list[str]]:
    """What a history says of the log; and what is wrong with what consumers were handed, in words."""
    findings, misread = Findings(), []
    for kind in Kind:
        findings.counts[kind] += count(verdict, kind)
    for finding in verdict.findings:
        kind_found = KIND_OF.get(finding.anomaly)
        if kind_found is None:
            misread.append(f"{finding.anomaly}: {finding.text}")
        elif len(findings.examples) < MAX_EXAMPLES:
            findings.examples.append(f"{kind_found}: {finding.text}")
    return findings, misread


# ---- What a consumer reads ----


@dataclass(slots=True)
class _Run:
    """What has been read of one run so far."""

    seen: bytearray = field(default_factory=bytearray)  # by id
    last_id: dict[int, int] = field(default_factory=dict)  # by partition
    last_counter: dict[bytes, int] = field(default_factory=dict)  # by key


class RecordCheck:
    """Feed it every record of a topic, each partition in offset order, then `finish`."""

    def __init__(self, ledgers: Iterable[Ledger]) -> None:
        self.findings = Findings()
        self.records = 0
        self._ledgers = {ledger.run: ledger for ledger in ledgers}
        self._runs: dict[str, _Run] = {run: _Run() for run in self._ledgers}
        self._next_offset: dict[int, int] = {}
        self._partition_of: dict[bytes, int] = {}

    @property
    def runs_without_ledger(self) -> list[str]:
        """Of their records only order and uniqueness are checked."""
        return sorted(self._runs.keys() - self._ledgers.keys())

    def add(self, partition: int, offset: int, key: bytes | None, value: bytes | None) -> None:
        self.records += 1
        self._check_offset(partition, offset)
        mark = read_mark(value)
        if mark is None:
            self.findings.add(Kind.FOREIGN, f"partition {partition} offset {offset}: no workload wrote this record")
            return
        run = self._runs.setdefault(mark.run, _Run())
        where = f"record {mark.record_id} of run {mark.run} at partition {partition} offset {offset}"
        if mark.record_id >= len(run.seen):
            run.seen.extend(bytes(mark.record_id + 1 - len(run.seen)))
        if run.seen[mark.record_id]:
            self.findings.add(Kind.DUPLICATED, f"{where} was read before")
            return
        run.seen[mark.record_id] = 1
        self._check_order(run, mark, partition, key, where)
        ledger = self._ledgers.get(mark.run)
        if ledger is not None:
            self._check_ledger(ledger, mark, partition, offset, where)

    def add_record(self, record: PolledRecord) -> None:
        self.add(record.partition, record.offset, record.key, record.value)

    def _check_offset(self, partition: int, offset: int) -> None:
        expected = self._next_offset.get(partition, offset)
        self._next_offset[partition] = offset + 1
        if offset != expected:
            self.findings.add(Kind.CORRUPT, f"partition {partition}: offset {offset} follows {expected - 1}")

    def _check_order(self, run: _Run, mark: Mark, partition: int, key: bytes | None, where: str) -> None:
        last = run.last_id.get(partition, -1)
        late = mark.record_id < last
        if late:
            self.findings.add(Kind.REORDERED, f"{where} comes after record {last}")
        run.last_id[partition] = max(last, mark.record_id)
        if key is None:
            return
        last_counter = run.last_counter.get(key, -1)
        if mark.counter <= last_counter and not late:
            self.findings.add(Kind.REORDERED, f"{where}: counter {mark.counter} of key {key!r} after {last_counter}")
        run.last_counter[key] = max(last_counter, mark.counter)
        home = self._partition_of.setdefault(key, partition)
        if home != partition:
            self.findings.add(Kind.MISPLACED, f"{where}: key {key!r} is in partition {home} too")

    def _check_ledger(self, ledger: Ledger, mark: Mark, partition: int, offset: int, where: str) -> None:
        if mark.record_id >= ledger.sent:
            self.findings.add(Kind.FOREIGN, f"{where}: the run sent only {ledger.sent} records")
            return
        outcome = ledger.outcomes[mark.record_id]
        if outcome == Outcome.REFUSED:
            self.findings.add(Kind.RESURRECTED, f"{where}: it was definitely refused")
        elif outcome == Outcome.ACKED:
            acked_partition, acked_offset = ledger.place(mark.record_id)
            if acked_offset != NO_OFFSET and (acked_partition, acked_offset) != (partition, offset):
                told = f"partition {acked_partition} offset {acked_offset}"
                self.findings.add(Kind.MOVED, f"{where}: acknowledged at {told}")

    def finish(self) -> Findings:
        """After the last record: what is missing."""
        for run, ledger in self._ledgers.items():
            seen = self._runs[run].seen
            seen.extend(bytes(max(0, ledger.sent - len(seen))))
            if seen.count(1, 0, ledger.sent) == ledger.sent:
                continue
            for record_id, outcome in enumerate(ledger.outcomes):
                if outcome == Outcome.ACKED and not seen[record_id]:
                    partition, offset = ledger.place(record_id)
                    told = f", acknowledged at partition {partition} offset {offset}," if offset != NO_OFFSET else ""
                    self.findings.add(Kind.LOST, f"record {record_id} of run {run}{told} is not in the log")
        return self.findings
