"""The check itself: operations in, one after another, and a verdict at the end.

What one line shows is found as it comes: a value at two offsets, an offset with two values, a consumer that goes back,
a read above the high watermark. What only the whole history shows is found at the end: see `outcomes` and `log_order`.
"""

from __future__ import annotations

from collections.abc import Mapping

from fencepost.history_format import Operation
from fencepost_proto.protocol.errors import InvariantBroken
from fencepost_testing.history_check.anomalies import Anomaly, AnomalyFindings, Verdict
from fencepost_testing.history_check.elections import Election
from fencepost_testing.history_check.groups import GroupCheck
from fencepost_testing.history_check.keys import KeyPlaces
from fencepost_testing.history_check.log_order import check_log_order
from fencepost_testing.history_check.outcomes import check_outcomes
from fencepost_testing.history_check.partition_log import EMPTY, FinalRead, PartitionLog, Skip
from fencepost_testing.history_check.processes import UNKNOWN_POSITION, Process, Reading
from fencepost_testing.history_check.sends import NOWHERE, Said, Sends, shown
from fencepost_testing.history_check.skips import check_skips
from fencepost_testing.log_check.outcomes import Outcome


class BrokenHistory(ValueError):
    """An operation that cannot follow those before it. Says which and why."""


class HistoryCheck:
    """Feed it every operation in the order of time, then `finish`.

    `foreign_records`: others write to the same topics; a record that no one in the history sent is no finding.
    `one_partition_per_key`: the senders place records by their keys, and topics have as many partitions as ever; then a
    key in two partitions is a finding (of sends that name no partition themselves).
    """

    def __init__(self, *, foreign_records: bool = False, one_partition_per_key: bool = False) -> None:
        self.lines = 0
        self._foreign_records = foreign_records
        self._findings = AnomalyFindings()
        self._sends = Sends()
        self._records_read = 0
        self._logs: list[PartitionLog] = []  # by number
        self._log_of: dict[tuple[str, int], PartitionLog] = {}
        self._processes: dict[str, Process] = {}
        self._process_names: list[str] = []  # by number
        self._readings: dict[tuple[str, str, int], Reading] = {}  # by process, topic and partition
        self._keys = KeyPlaces(self._findings) if one_partition_per_key else None
        self._groups = GroupCheck(self._findings)
        self._finished = False

    @property
    def counts(self) -> Mapping[Anomaly, int]:
        """What has been found so far."""
        return self._findings.counts

    def feed(self, operation: Operation) -> None:
        """Raises BrokenHistory; the check cannot go on after that."""
        self.lines += 1
        name = operation.op
        if name == "poll":
            if operation.records:
                self._poll(operation)
                self._groups.polled(operation, self.lines)
        elif name == "send":
            if operation.type == "invoke":
                self._invoke_send(operation)
            else:
                self._complete_send(operation)
        elif name == "final":
            self._final(operation)
        elif name == "elect":
            self._elect(operation)
        elif operation.group:
            self._groups.feed(operation, self.lines)
        elif operation.type != "invoke":
            self._reading(operation).seek(operation.offset, self.lines)

    def finish(self) -> Verdict:
        """What the whole history says. Call it once."""
        if self._finished:
            raise InvariantBroken("the check of a history was finished twice")
        self._finished = True
        for reading in self._readings.values():
            reading.close()
        self._groups.finish()
        logs, sends, names, findings = self._logs, self._sends, self._process_names, self._findings
        taken = check_outcomes(sends, logs, names, findings, foreign_records=self._foreign_records)
        for log in logs:
            check_skips(log, sends, names, findings)
            check_log_order(log, sends, names, findings)
        acked, failed, unknown = (
            sends.outcome.count(outcome) for outcome in (Outcome.ACKED, Outcome.REFUSED, Outcome.UNKNOWN)
        )
        return Verdict(
            lines=self.lines,
            sends=acked + failed + unknown,
            acked=acked,
            failed=failed,
            unknown=unknown,
            stamped=len(sends) - sends.sequence[: len(sends)].count(NOWHERE),
            records_read=self._records_read,
            partitions=len(logs),
            final_reads=sum(log.final is not None for log in logs),
            counts=dict(findings.counts),
            findings=tuple(findings.shown),
            elections=sum(len(log.elections) for log in logs),
            lost_as_told=taken,
            commits=self._groups.commits,
        )

    # ---- Who and where ----

    def _process(self, name: str) -> Process:
        process = self._processes.get(name)
        if process is None:
            process = self._processes[name] = Process(name, len(self._process_names))
            self._process_names.append(name)
        return process

    def _log(self, topic: str, partition: int) -> PartitionLog:
        log = self._log_of.get((topic, partition))
        if log is None:
            log = self._log_of[topic, partition] = PartitionLog(topic, partition, len(self._logs))
            self._logs.append(log)
        return log

    def _reading(self, operation: Operation) -> Reading:
        key = operation.process, operation.topic, operation.partition
        reading = self._readings.get(key)
        if reading is None:
            log = self._log(operation.topic, operation.partition)
            reading = self._readings[key] = Reading(log, self._process(operation.process).number)
        return reading

    # ---- Sends ----

    def _invoke_send(self, operation: Operation) -> None:
        process, sends, value = self._process(operation.process), self._sends, operation.value
        if value is None:
            raise BrokenHistory(f"a send of {operation.process} without a value: records are identified by it")
        if operation.id <= process.last_id:  # another client under the same name
            process.number, process.open_sends = len(self._process_names), {}
            self._process_names.append(process.name)
        process.last_id = operation.id
        number = sends.number(sends.topic(operation.topic), value)
        if sends.invoked[number]:
            raise BrokenHistory(
                f"value {shown(value)} is sent to topic {operation.topic!r} a second time (first in operation "
                f"{sends.invoked[number]} of the history): records are identified by their values"
            )
        sends.invoked[number] = self.lines
        sends.process[number] = process.number
        sends.outcome[number] = Outcome.UNKNOWN
        process.open_sends[operation.id] = number, operation.topic
        if self._keys is not None and operation.key is not None and operation.partition < 0:
            self._keys.sent(number, operation.key)

    def _complete_send(self, operation: Operation) -> None:
        sends = self._sends
        number, topic = self._process(operation.process).open_sends.pop(operation.id, (EMPTY, ""))
        if number == EMPTY or topic != operation.topic:
            raise BrokenHistory(
                f"{operation.type} of send {operation.id} of {operation.process} to topic {operation.topic!r}: it was "
                "never invoked, or has been completed before"
            )
        sends.completed[number] = self.lines
        if operation.producer is not None:
            sends.producer_id[number], sends.producer_epoch[number], sends.sequence[number] = operation.producer
        if operation.type == "ok":
            sends.outcome[number] = Outcome.ACKED
            self._acked(number, self._log(topic, operation.partition), operation.offset)
        elif operation.type == "fail" and not operation.may_have_been_appended:
            sends.outcome[number] = Outcome.REFUSED

    def _acked(self, number: int, log: PartitionLog, offset: int) -> None:
        sends = self._sends
        sends.acked_partition[number] = log.number
        if self._keys is not None:
            self._keys.found(number, log, self._sends)
        if offset == NOWHERE:
            return
        sends.acked_offset[number] = offset
        if (standing := log.put(offset, number)) != number:
            self._put_over(number, log, offset, standing)
        read_at = sends.read_partition[number], sends.read_offset[number]
        if sends.read[number] and read_at != (log.number, offset):
            self._moved(number, log, offset, *read_at)

    # ---- Reads ----

    def _poll(self, operation: Operation) -> None:
        reading, sends, line = self._reading(operation), self._sends, self.lines
        log, high_watermark, numbers = reading.log, operation.high_watermark, sends.topic(operation.topic)
        for offset, value in operation.records:
            if offset != reading.next_offset and reading.jump(offset, line):
                self._went_back(operation, reading, offset)
            reading.next_offset = offset + 1
            if value is None:
                self._read_null(log, offset)
                continue
            number = sends.number(numbers, value)
            if (standing := log.put(offset, number)) != number:
                self._put_over(number, log, offset, standing)
                if not sends.read[standing] or (reading.final and len(log.elections)):
                    log.replace(offset, number)  # what was read counts for more than an acknowledgement
            if reading.overruled and sends.invoked[number] > reading.overruled:
                self._went_on(operation, reading, offset)
            if not sends.read[number]:
                self._first_read(number, log, offset)
            elif sends.read_offset[number] != offset or sends.read_partition[number] != log.number:
                self._read_elsewhere(number, reading, offset)
            if offset >= high_watermark >= 0:
                self._precommitted(number, log, offset, high_watermark)
            if reading.final:
                sends.final[number] = reading.final
        self._records_read += len(operation.records)
        reading.end_offset = max(reading.end_offset, reading.next_offset)
        reading.last_line = line

    def _first_read(self, number: int, log: PartitionLog, offset: int) -> None:
        sends = self._sends
        sends.read[number] = self.lines
        sends.read_partition[number] = log.number
        sends.read_offset[number] = offset
        if self._keys is not None:
            self._keys.found(number, log, sends)
        acked_offset, acked_in = sends.acked_offset[number], sends.acked_partition[number]
        if acked_offset != NOWHERE and (acked_offset != offset or acked_in != log.number):
            self._moved(number, log, offset, acked_in, acked_offset)

    def _read_elsewhere(self, number: int, reading: Reading, offset: int) -> None:
        sends, log = self._sends, reading.log
        if reading.final and sends.final[number] == reading.final:  # twice in one log
            self._duplicate(number, log, offset)
        elif self._moved(number, log, offset, sends.read_partition[number], sends.read_offset[number]):
            sends.read_offset[number] = offset

    def _read_null(self, log: PartitionLog, offset: int) -> None:
        """A record without a value: no one can have sent it."""
        standing = log.at(offset)
        if standing != EMPTY:
            text = f"{log.name} offset {offset} holds {shown(self._sends.values[standing])}, and was read as null"
            self._findings.add(
                Anomaly.INCONSISTENT_OFFSETS, text, (*self._sends.evidence(standing), self.lines), (offset,)
            )
        elif not self._foreign_records:
            text = f"{log.name} offset {offset} was read as null, which no one sent"
            self._findings.add(Anomaly.PHANTOM, text, (self.lines,), (offset,))

    def _final(self, operation: Operation) -> None:
        reading = self._reading(operation)
        if operation.type == "invoke":
            reading.final = self.lines
            return
        began, reading.final = reading.final, 0
        if operation.type != "ok":
            return
        if not began:
            raise BrokenHistory(f"a final read of {reading.log.name} by {operation.process} ends that never began")
        start, end = operation.start_offset, operation.end_offset
        reading.log.final = FinalRead(began, start, end)
        reading.log.add_read(start, end)
        reached = start if reading.next_offset == UNKNOWN_POSITION else max(start, reading.next_offset)
        if reached < end:
            reading.log.add_skip(Skip(reading.process, reached, end, self.lines))

    # ---- Unclean elections ----

    def _elect(self, operation: Operation) -> None:
        log, process = self._log(operation.topic, operation.partition), self._process(operation.process)
        if operation.type == "invoke":
            election = Election(self.lines, operation.start_offset, operation.end_offset)
            election.before = log.take_out(election.kept_end_offset)
            log.elections.add(election)
            process.open_elections[operation.id] = log, election
            for reading in self._readings.values():
                if reading.log is log and reading.next_offset > election.log_end_offset:
                    reading.overruled = self.lines
            return
        found = process.open_elections.pop(operation.id, None)
        if found is None or found[0] is not log:
            raise BrokenHistory(
                f"{operation.type} of election {operation.id} of {operation.process} for {log.name}: it was never ordered, "
                "or has been completed before"
            )
        election = found[1]
        election.is_open = False
        if operation.type == "fail":
            self._not_elected(log, election)
        elif operation.type == "ok":
            election.completed = True
            for text, lines, offset in election.went_on:
                self._findings.add(Anomaly.POLL_SKIP, text, lines, (offset,))

    def _not_elected(self, log: PartitionLog, election: Election) -> None:
        """What stood there still does."""
        log.elections.remove(election)
        for reading in self._readings.values():
            if reading.overruled == election.line:
                reading.overruled = 0
        for offset, number in election.before:
            if (standing := log.put(offset, number)) != number:
                self._put_over(number, log, offset, standing)

    def _put_over(self, number: int, log: PartitionLog, offset: int, standing: int) -> None:
        """`number` is reported where `standing` is known to be. After an unclean election one of them may be of before."""
        if not len(log.elections):
            self._inconsistent(number, log, offset)
            return
        sends, may_take = self._sends, log.elections.may_take
        of_before = may_take(offset, sends.invoked[number])
        if not of_before and not may_take(offset, sends.invoked[standing]):
            self._inconsistent(number, log, offset)
        elif not of_before:
            log.replace(offset, number)

    def _moved(self, number: int, log: PartitionLog, offset: int, other_partition: int, other: int) -> bool:
        """A value is reported at `offset`, and is known from another place: a duplicate, unless it may have been in a log
        that an unclean election has overruled, and be in the elected one too. True where that is so."""
        elections, invoked = log.elections, self._sends.invoked[number]
        if len(elections) and other_partition == log.number and elections.may_take(min(offset, other), invoked):
            return True
        self._duplicate(number, log, offset)
        return False

    def _went_on(self, operation: Operation, reading: Reading, offset: int) -> None:
        text = (
            f"{reading.log.name}: {operation.process} had read to offset {reading.end_offset - 1} what an unclean election "
            f"took, and goes on at offset {offset} in the elected log without going back"
        )
        election, lines = reading.log.elections.of_line(reading.overruled), (reading.last_line, self.lines)
        if election.completed:
            self._findings.add(Anomaly.POLL_SKIP, text, (election.line, *lines), (offset,))
        elif election.is_open:
            election.went_on.append((text, (election.line, *lines), offset))
        reading.overruled = 0

    # ---- What one line shows ----

    def _once(self, number: int, what: Said) -> bool:
        """Whether this has not been said of a value yet."""
        told = self._sends.said
        before = told[number]
        told[number] = before | what
        return not before & what

    def _inconsistent(self, number: int, log: PartitionLog, offset: int) -> None:
        if not self._once(number, Said.INCONSISTENT):
            return
        sends, other = self._sends, log.at(offset)
        text = f"{log.name} offset {offset} holds {shown(sends.values[other])} and {shown(sends.values[number])}"
        evidence = (self.lines, *sends.evidence(other), *sends.evidence(number))
        self._findings.add(Anomaly.INCONSISTENT_OFFSETS, text, evidence, (offset,))

    def _duplicate(self, number: int, log: PartitionLog, offset: int) -> None:
        """A value is reported at `offset`, and is known from another place."""
        if not self._once(number, Said.DUPLICATE):
            return
        sends, logs = self._sends, self._logs
        places = {f"{log.name} offset {offset}": offset}
        if sends.acked_offset[number] != NOWHERE:
            acked = logs[sends.acked_partition[number]], sends.acked_offset[number]
            places[f"{acked[0].name} offset {acked[1]}"] = acked[1]
        if sends.read[number]:
            read = logs[sends.read_partition[number]], sends.read_offset[number]
            places[f"{read[0].name} offset {read[1]}"] = read[1]
        text = f"{shown(sends.values[number])} is at {' and at '.join(sorted(places))}"
        self._findings.add(
            Anomaly.DUPLICATE, text, (*sends.evidence(number), self.lines), tuple(sorted(places.values()))
        )

    def _went_back(self, operation: Operation, reading: Reading, offset: int) -> None:
        text = f"{reading.log.name}: {operation.process} was handed offset {offset} when {reading.next_offset} was next"
        self._findings.add(Anomaly.NONMONOTONIC_POLL, text, (reading.last_line, self.lines), (offset,))

    def _precommitted(self, number: int, log: PartitionLog, offset: int, high_watermark: int) -> None:
        if self._once(number, Said.PRECOMMITTED):
            value = shown(self._sends.values[number])
            text = f"{log.name}: {value} was read at offset {offset}, and the high watermark was {high_watermark}"
            self._findings.add(Anomaly.PRECOMMITTED_READ, text, (*self._sends.evidence(number), self.lines), (offset,))
