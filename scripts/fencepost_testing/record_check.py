"""What a consumer reads of a workload's topic, compared with what the workload's runs sent.

Every record says in its value whose it is (`ledger.read_mark`), so `LogCheck` can find each. What the check adds is what
only a reader of records can see: offsets without a hole, and each key of a run in one partition, its counter rising.
"""

from __future__ import annotations

from collections.abc import Iterable

from fencepost.history import PolledRecord
from fencepost_testing.log_check.check import LogCheck
from fencepost_testing.log_check.findings import Findings, Kind
from fencepost_testing.log_check.ledger import Ledger, Mark, read_mark


class RecordCheck:
    """Feed it every record of a topic, each partition in offset order, then `finish`."""

    def __init__(self, topic: str, ledgers: Iterable[Ledger]) -> None:
        self.records = 0
        self._topic = topic
        self._log_check = LogCheck(topic, ledgers)
        self._findings = self._log_check.findings
        self._next_offset: dict[int, int] = {}
        self._partition_of: dict[tuple[str, bytes], int] = {}  # by run: clients of others have other partitioners
        self._last_counter: dict[tuple[str, bytes], int] = {}  # by run and key

    @property
    def runs_without_ledger(self) -> list[str]:
        """Of their records only order and uniqueness are checked."""
        return self._log_check.senders_without_ledger

    def add(self, partition: int, offset: int, key: bytes | None, value: bytes | None) -> None:
        self.records += 1
        self._check_offset(partition, offset)
        mark = read_mark(value)
        if mark is None:
            self._findings.add(
                Kind.FOREIGN, f"{self._topic}-{partition} offset {offset}: no workload wrote this record"
            )
            return
        wrong = self._log_check.enter_record(partition, offset, mark.run, mark.record_id)
        if key is not None and wrong is not Kind.DUPLICATED:
            self._check_key(mark, partition, offset, key, late=wrong is Kind.REORDERED)

    def add_record(self, record: PolledRecord) -> None:
        self.add(record.partition, record.offset, record.key, record.value)

    def finish(self) -> Findings:
        """After the last record: what is missing."""
        return self._log_check.finish()

    def _check_offset(self, partition: int, offset: int) -> None:
        expected = self._next_offset.get(partition, offset)
        self._next_offset[partition] = offset + 1
        if offset != expected:
            self._findings.add(Kind.CORRUPT, f"{self._topic}-{partition}: offset {offset} follows {expected - 1}")

    def _check_key(self, mark: Mark, partition: int, offset: int, key: bytes, *, late: bool) -> None:
        where = f"{self._topic}-{partition} offset {offset}: record {mark.record_id} of run {mark.run}"
        last_counter = self._last_counter.get((mark.run, key), -1)
        if mark.counter <= last_counter and not late:
            self._findings.add(Kind.REORDERED, f"{where}: counter {mark.counter} of key {key!r} after {last_counter}")
        self._last_counter[mark.run, key] = max(last_counter, mark.counter)
        home = self._partition_of.setdefault((mark.run, key), partition)
        if home != partition:
            self._findings.add(Kind.MISPLACED, f"{where}: key {key!r} is in partition {home} too")
