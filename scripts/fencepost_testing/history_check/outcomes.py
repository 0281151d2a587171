"""What became of every value: compares the answer to its sender with what was read.

Where a *final read* has been through a partition, it decides: what was acknowledged before it began, or below its
end, and was not handed to it, is lost; and a record of unknown outcome that had been read before must still be there.
Without one, an acknowledged record is lost where consumers went past its offset and no one was handed it; beyond that it
is only unseen.

What an unclean election may have taken is not missed (`elections`); what it must have taken must not be there.
"""

from __future__ import annotations

from collections.abc import Sequence

from fencepost_testing.history_check.anomalies import Anomaly, AnomalyFindings
from fencepost_testing.history_check.partition_log import PartitionLog, RangesRead
from fencepost_testing.history_check.sends import NOWHERE, Sends, shown
from fencepost_testing.log_check.outcomes import Outcome, wrong_outcome


def check_outcomes(
    sends: Sends,
    logs: Sequence[PartitionLog],
    names: Sequence[str],
    findings: AnomalyFindings,
    *,
    foreign_records: bool,
) -> int:
    """G1a, lost-write, not-lost, unseen, phantom, and reads of what is gone at the end. Returns how many acknowledged
    records unclean elections have taken."""
    check = _OutcomeCheck(sends, logs, names, findings)
    by_outcome = {
        Outcome.ACKED: check.acked,
        Outcome.UNKNOWN: check.unknown,
        Outcome.REFUSED: check.refused,
        Outcome.NEVER_SENT: check.foreign if foreign_records else check.never_sent,
    }
    of_outcome = [by_outcome[Outcome(outcome)] for outcome in range(len(Outcome))]
    for number in range(len(sends)):
        of_outcome[sends.outcome[number]](number)
    return check.taken


class _OutcomeCheck:
    def __init__(
        self, sends: Sends, logs: Sequence[PartitionLog], names: Sequence[str], findings: AnomalyFindings
    ) -> None:
        self._sends = sends
        self._logs = logs
        self._names = names
        self._findings = findings
        self._ranges: dict[PartitionLog, RangesRead] = {}
        self.taken = 0

    # ---- By outcome ----

    def acked(self, number: int) -> None:
        sends = self._sends
        log, offset = self._logs[sends.acked_partition[number]], sends.acked_offset[number]
        if log.final is None:
            if sends.read[number] or self._may_be_taken(number, log, offset):
                return
            if offset != NOWHERE and offset in self._ranges_read(log):
                self._lost(number, log, f"offsets {self._ranges_read(log)} were read")
            else:
                self._unseen(number, log)
            return
        if sends.final[number] == log.final.began:
            self._look_for_what_was_taken(number, log, offset)
            return
        if offset == NOWHERE and sends.read[number]:
            offset = sends.read_offset[number]
        must_be_there = self._must_be_in_final(log, offset, sends.completed[number])
        may_be_taken = self._may_be_taken(number, log, offset)
        self.taken += must_be_there and may_be_taken
        if wrong_outcome(Outcome.ACKED, in_log=False, must_be_kept=must_be_there and not may_be_taken):
            end = f"the final read went from offset {log.final.start_offset} up to {log.final.end_offset - 1}"
            if not log.final.end_offset:
                end = "the final read found nothing"
            self._lost(number, log, end)
        elif (
            not may_be_taken and not sends.read[number] and not (offset != NOWHERE and offset < log.final.start_offset)
        ):
            self._unseen(number, log)

    def unknown(self, number: int) -> None:
        """It may be in the log or not; but once read, it must stay."""
        sends = self._sends
        if not sends.read[number]:
            return
        log, offset = self._logs[sends.read_partition[number]], sends.read_offset[number]
        if log.final is None or sends.final[number] == log.final.began:
            return
        if self._must_be_in_final(log, offset, sends.read[number]) and not self._may_be_taken(number, log, offset):
            text = f"{log.name}: {self._told(number)} was read at offset {offset}, and was gone in the final read"
            self._findings.add(Anomaly.PRECOMMITTED_READ, text, sends.evidence(number), (offset,))

    def refused(self, number: int) -> None:
        sends = self._sends
        if wrong_outcome(Outcome.REFUSED, in_log=bool(sends.read[number])):
            log, offset = self._logs[sends.read_partition[number]], sends.read_offset[number]
            text = f"{log.name}: {self._told(number)} certainly failed, and was read at offset {offset}"
            self._findings.add(Anomaly.G1A, text, sends.evidence(number), (offset,))

    def never_sent(self, number: int) -> None:
        sends = self._sends
        log, offset = self._logs[sends.read_partition[number]], sends.read_offset[number]
        text = f"{log.name}: {shown(sends.values[number])} stands at offset {offset}, and no one sent it"
        self._findings.add(Anomaly.PHANTOM, text, sends.evidence(number), (offset,))

    def foreign(self, number: int) -> None:
        """Someone else's; nothing is known of it."""

    # ---- Inside ----

    def _may_be_taken(self, number: int, log: PartitionLog, offset: int) -> bool:
        return len(log.elections) > 0 and log.elections.may_take(offset, self._sends.invoked[number])

    def _look_for_what_was_taken(self, number: int, log: PartitionLog, offset: int) -> None:
        sends = self._sends
        if offset == sends.read_offset[number] and log.elections.has_taken(offset, sends.completed[number]):
            text = (
                f"{log.name}: {self._told(number)} still stands at offset {offset}, which an unclean election has taken"
            )
            lines = tuple(election.line for election in log.elections)
            self._findings.add(Anomaly.NOT_LOST, text, (*sends.evidence(number), *lines), (offset,))

    def _must_be_in_final(self, log: PartitionLog, offset: int, known_since: int) -> bool:
        """Whether a record that was known to be in the log since that line cannot be missing in the final read."""
        final = log.final
        if final is None or offset < final.start_offset:  # retention may have removed it; NOWHERE is such an offset too
            return final is not None and offset == NOWHERE and not final.start_offset and known_since < final.began
        return offset < final.end_offset or known_since < final.began

    def _lost(self, number: int, log: PartitionLog, read: str) -> None:
        sends, offset = self._sends, self._sends.acked_offset[number]
        where = f" at offset {offset}" if offset != NOWHERE else ""
        text = f"{log.name}: {self._told(number)} was acknowledged{where}; {read} and it was not there"
        self._findings.add(Anomaly.LOST_WRITE, text, (*sends.evidence(number), *self._instead(log, offset)), (offset,))

    def _instead(self, log: PartitionLog, offset: int) -> tuple[int, ...]:
        """Lines about what is known to stand there, and about the final read."""
        began = log.final.began if log.final is not None else 0
        standing = log.at(offset) if offset != NOWHERE else NOWHERE
        return (began,) if standing == NOWHERE else (began, *self._sends.evidence(standing))

    def _unseen(self, number: int, log: PartitionLog) -> None:
        offset = self._sends.acked_offset[number]
        where = f" at offset {offset}" if offset != NOWHERE else ""
        text = f"{log.name}: {self._told(number)} was acknowledged{where}, and no read has found it"
        self._findings.add(Anomaly.UNSEEN, text, self._sends.evidence(number), (offset,))

    def _told(self, number: int) -> str:
        sends = self._sends
        stamp, said = sends.stamp(number), f"{shown(sends.values[number])} of {self._names[sends.process[number]]}"
        return said if stamp is None else f"{said} ({stamp})"

    def _ranges_read(self, log: PartitionLog) -> RangesRead:
        ranges = self._ranges.get(log)
        if ranges is None:
            ranges = self._ranges[log] = log.ranges_read()
        return ranges
