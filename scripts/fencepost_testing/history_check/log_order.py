"""Goes through a partition's log in the order of offsets, as far as it is known.

Two orders are compared with that of the log. A process hands its records over one after another, so they stand in the
log in that order, whatever became of some of them (`SendOrder`). And where stamps are known, a producer's epochs and
sequences rise, without a gap (`SequenceOrder`).

What unclean elections took is looked at in its own order, and the elected log in its.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from fencepost_testing.history_check.anomalies import Anomaly, AnomalyFindings
from fencepost_testing.history_check.partition_log import PartitionLog
from fencepost_testing.history_check.sends import NOWHERE, Sends
from fencepost_testing.log_check.findings import Kind
from fencepost_testing.log_check.outcomes import Outcome
from fencepost_testing.log_check.send_order import SendOrder
from fencepost_testing.log_check.sequence_order import NO_SOURCE, SequenceFinding, SequenceOrder

_ANOMALIES: Mapping[Kind, Anomaly] = {
    Kind.DUPLICATED: Anomaly.DUPLICATE,
    Kind.REORDERED: Anomaly.REORDERED,
    Kind.GAP: Anomaly.SEQUENCE_GAP,
}


def check_log_order(log: PartitionLog, sends: Sends, names: Sequence[str], findings: AnomalyFindings) -> None:
    """nonmonotonic-send, reordered, sequence-gap, and sequence numbers that stand twice."""
    _LogOrder(log, sends, names, findings).check(_elected(log, sends))
    for election in log.elections:
        of_before = log.elections.may_be_of_before
        entries = ((at, value) for at, value in election.before if not of_before(election.line, sends.invoked[value]))
        _LogOrder(log, sends, names, findings).check(entries)


def _elected(log: PartitionLog, sends: Sends) -> Iterator[tuple[int, int]]:
    """What stands in the log. After unclean elections: without what may be of the logs of before."""
    if not len(log.elections):
        yield from log.known()
        return
    began = log.final.began if log.final is not None else 0
    for offset, number in log.known():
        if sends.final[number] == began if began else not log.elections.may_take(offset, sends.invoked[number]):
            yield offset, number


class _LogOrder:
    """One run through a partition."""

    def __init__(self, log: PartitionLog, sends: Sends, names: Sequence[str], findings: AnomalyFindings) -> None:
        self._log = log
        self._sends = sends
        self._names = names
        self._findings = findings

    def check(self, entries: Iterable[tuple[int, int]]) -> None:
        """(offset, value) of what stands there, in the order of offsets."""
        sends = self._sends
        order: SendOrder[tuple[int, int]] = SendOrder()  # of (offset, value)
        sequences = SequenceOrder(self._log.name, self._add_sequence)
        stamped = 0
        for offset, number in entries:
            if sends.read[number]:
                home = sends.read_offset[number], sends.read_partition[number]
            else:
                home = sends.acked_offset[number], sends.acked_partition[number]
            if home != (offset, self._log.number):
                continue  # a second place of the value: found elsewhere
            if sends.outcome[number] in (Outcome.ACKED, Outcome.UNKNOWN):
                before = order.enter_record(sends.process[number], sends.invoked[number], (offset, number))
                if before is not None:
                    self._add_order(offset, number, *before)
            stamp = sends.stamp(number)
            if stamp is not None:
                sequences.enter_stamp(stamp, offset, number, unstamped=offset - stamped)
                stamped += 1
        sequences.finish()

    def _add_order(self, offset: int, earlier: int, before_offset: int, later: int) -> None:
        """A value stands behind one that the same process sent later."""
        sends = self._sends
        acked = sends.acked_offset[earlier] != NOWHERE and sends.acked_offset[later] != NOWHERE
        text = (
            f"{self._log.name}: {self._names[sends.process[earlier]]} sent {sends.described(earlier)} before "
            f"{sends.described(later)}; they are at offsets {offset} and {before_offset}"
        )
        self._findings.add(
            Anomaly.NONMONOTONIC_SEND if acked else Anomaly.REORDERED,
            text,
            (*sends.evidence(earlier), *sends.evidence(later)),
            (before_offset, offset),
        )

    def _add_sequence(self, found: SequenceFinding) -> None:
        values = [number for number in (found.before, found.source) if number != NO_SOURCE]
        evidence = tuple(line for number in values for line in self._sends.evidence(number))
        self._findings.add(_ANOMALIES[found.kind], found.text, evidence, (found.offset,))
