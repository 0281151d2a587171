"""The whole check of one topic's logs, where each is known from its start to its end."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator

from fencepost_testing.log_check.findings import Findings, Kind
from fencepost_testing.log_check.ledger import NO_OFFSET, Ledger
from fencepost_testing.log_check.outcomes import Outcome, wrong_outcome
from fencepost_testing.log_check.send_order import SendOrder
from fencepost_testing.log_check.sequence_order import SequenceFinding, SequenceOrder

NOT_FOUND = -1

MayBeGone = Callable[[Ledger, int], bool]


class _Found:
    """Where the records of one sender were found, by their numbers."""

    __slots__ = ("_offsets", "_others", "_partitions")

    def __init__(self, sent: int) -> None:
        self._partitions = array("i", [NOT_FOUND]) * sent
        self._offsets = array("q", [NOT_FOUND]) * sent
        self._others: dict[int, tuple[int, int]] = {}  # of numbers that no ledger knows: they may be any

    def enter_place(self, number: int, partition: int, offset: int) -> tuple[int, int] | None:
        """Returns the place at which that record was found before."""
        if number >= len(self._offsets):
            first = self._others.setdefault(number, (partition, offset))
            return first if first != (partition, offset) else None
        if self._offsets[number] != NOT_FOUND:
            return self._partitions[number], self._offsets[number]
        self._partitions[number], self._offsets[number] = partition, offset
        return None

    def missing(self) -> Iterator[int]:
        """Numbers that were not found."""
        if NOT_FOUND in self._offsets:
            for number, offset in enumerate(self._offsets):
                if offset == NOT_FOUND:
                    yield number


class _Log:
    """One partition, as far as it was entered."""

    __slots__ = ("order", "sequences", "stamped")

    def __init__(self, sequences: SequenceOrder) -> None:
        self.order: SendOrder[int] = SendOrder()  # entries are record numbers
        self.sequences = sequences
        self.stamped = 0


class LogCheck:
    """Enter every record of a topic, each partition in the order of offsets, then `finish`.

    A record is known by its sender and its number: 0, 1, 2, … in the order of sending. Senders keep ledgers; of a sender
    without one only order and uniqueness are checked.

    `may_be_gone(ledger, number)`: asked of acknowledged records that are not where they were acknowledged. True where
    something has removed them that may: retention, an unclean election. The log that such an election chose may hold the
    same record at another offset, from an attempt before the one that was acknowledged.
    """

    def __init__(self, topic: str, ledgers: Iterable[Ledger], *, may_be_gone: MayBeGone = lambda ledger, number: False):
        self.findings = Findings()
        self.records = 0
        self._topic = topic
        self._may_be_gone = may_be_gone
        self._ledgers = {ledger.run: ledger for ledger in ledgers}
        self._found: dict[str, _Found] = {sender: _Found(ledger.sent) for sender, ledger in self._ledgers.items()}
        self._logs: dict[int, _Log] = {}  # by partition

    @property
    def senders_without_ledger(self) -> list[str]:
        return sorted(self._found.keys() - self._ledgers.keys())

    def enter_record(self, partition: int, offset: int, sender: str, number: int) -> Kind | None:
        """What is wrong with the record's place among the others: DUPLICATED, REORDERED, or nothing."""
        self.records += 1
        found = self._found.get(sender)
        if found is None:
            found = self._found[sender] = _Found(0)
        first = found.enter_place(number, partition, offset)
        if first is not None:
            text = f"{self._place(partition, offset)}: {self._record(sender, number)} is at {self._place(*first)} too"
            self.findings.add(Kind.DUPLICATED, text)
            return Kind.DUPLICATED
        log = self._logs.get(partition)
        if log is None:
            log = self._logs[partition] = _Log(SequenceOrder(f"{self._topic}-{partition}", self._add_sequence))
        ledger = self._ledgers.get(sender)
        later = log.order.enter_record(sender, number, number) if ledger is None or ledger.ordered else None
        if later is not None:
            text = f"{self._place(partition, offset)}: {self._record(sender, number)} comes after number {later}"
            self.findings.add(Kind.REORDERED, text)
        if ledger is not None:
            self._compare(ledger, number, partition, offset, log)
        return Kind.REORDERED if later is not None else None

    def _compare(self, ledger: Ledger, number: int, partition: int, offset: int, log: _Log) -> None:
        """Compare the record with its outcome, and follow its stamp."""
        outcome = ledger.outcome(number)
        if outcome is Outcome.ACKED:
            acked_partition, acked_offset = ledger.place(number)
            moved = acked_offset != NO_OFFSET and (acked_partition, acked_offset) != (partition, offset)
            if moved and not self._may_be_gone(ledger, number):
                acked = self._place(acked_partition, acked_offset)
                text = (
                    f"{self._place(partition, offset)}: {self._record(ledger.run, number)} was acknowledged at {acked}"
                )
                self.findings.add(Kind.MOVED, text)
        elif (kind := wrong_outcome(outcome, in_log=True)) is not None:
            problem = (
                f"no one sent it ({ledger.sent} were sent)" if kind is Kind.FOREIGN else "it was definitely refused"
            )
            self.findings.add(kind, f"{self._place(partition, offset)}: {self._record(ledger.run, number)}: {problem}")
        stamp = ledger.stamp(number)
        if stamp is not None:
            log.sequences.enter_stamp(stamp, offset, number, unstamped=offset - log.stamped)
            log.stamped += 1

    def finish(self) -> Findings:
        """After the last record: what is missing."""
        for sender, ledger in self._ledgers.items():
            for number in self._found[sender].missing():
                if ledger.outcome(number) is Outcome.ACKED:
                    self._check_missing(ledger, number)
        for log in self._logs.values():
            log.sequences.finish()
        return self.findings

    def _check_missing(self, ledger: Ledger, number: int) -> None:
        kept = not self._may_be_gone(ledger, number)
        kind = wrong_outcome(ledger.outcome(number), in_log=False, must_be_kept=kept)
        if kind is not None:
            partition, offset = ledger.place(number)
            place = f" at {self._place(partition, offset)}" if offset != NO_OFFSET else ""
            text = f"{self._record(ledger.run, number)} was acknowledged{place}, and is not in the log of {self._topic}"
            self.findings.add(kind, text)

    # ---- In words ----

    def _add_sequence(self, found: SequenceFinding) -> None:
        self.findings.add(found.kind, found.text, found.records)

    def _place(self, partition: int, offset: int) -> str:
        return f"{self._topic}-{partition} offset {offset}"

    def _record(self, sender: str, number: int) -> str:
        ledger = self._ledgers.get(sender)
        stamp = ledger.stamp(number) if ledger is not None else None
        return f"record {number} of run {sender}" + (f" ({stamp})" if stamp is not None else "")
