"""Goes through a partition's log in the order of offsets, as far as it is known, and follows every producer through it.

Two orders are compared with that of the log. A process hands its records over one after another, so they stand in the
log in that order, whatever became of some of them. And where stamps are known, a producer's (epoch, sequence) rise, and
sequences have no gap: a gap is certain once the offsets in between that might hold the missing sequences, because
nothing or no stamp is known of them, are fewer than the missing sequences. Every epoch begins at sequence 0.

What unclean elections took is looked at in its own order, and the elected log in its.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fencepost_testing.history_check.anomalies import Anomaly, Findings
from fencepost_testing.history_check.partition_log import PartitionLog
from fencepost_testing.history_check.sends import NOWHERE, Outcome, Sends, shown

MAX_GAPS = 1_000  # of one producer and epoch that may still be filled by a record that comes late
_SEQUENCES = 1 << 31  # 0 follows the last of them


def check_log_order(log: PartitionLog, sends: Sends, names: Sequence[str], findings: Findings) -> None:
    """nonmonotonic-send, reordered, sequence-gap, and sequence numbers that stand twice."""
    _check(log, _elected(log, sends), sends, names, findings)
    for election in log.elections:
        of_before = log.elections.may_be_of_before
        entries = ((at, value) for at, value in election.before if not of_before(election.line, sends.invoked[value]))
        _check(log, entries, sends, names, findings)


def _elected(log: PartitionLog, sends: Sends) -> Iterator[tuple[int, int]]:
    """What stands in the log. After unclean elections: without what may be of the logs of before."""
    if not len(log.elections):
        yield from log.known()
        return
    began = log.final.began if log.final is not None else 0
    for offset, number in log.known():
        if sends.final[number] == began if began else not log.elections.may_take(offset, sends.invoked[number]):
            yield offset, number


def _check(
    log: PartitionLog, entries: Iterable[tuple[int, int]], sends: Sends, names: Sequence[str], findings: Findings
) -> None:
    senders = _SenderOrder(log, sends, names, findings)
    producers = _ProducerOrder(log, sends, findings)
    for offset, number in entries:
        if sends.read[number]:
            home = sends.read_offset[number], sends.read_partition[number]
        else:
            home = sends.acked_offset[number], sends.acked_partition[number]
        if home != (offset, log.number):
            continue  # a second place of the value: found elsewhere
        if sends.outcome[number] in (Outcome.ACKED, Outcome.UNKNOWN):
            senders.add(offset, number)
        if sends.sequence[number] != NOWHERE:
            producers.add(offset, number)
    producers.finish()


class _SenderOrder:
    """Each process's records in the order of its sending."""

    def __init__(self, log: PartitionLog, sends: Sends, names: Sequence[str], findings: Findings) -> None:
        self._log = log
        self._sends = sends
        self._names = names
        self._findings = findings
        self._last: dict[int, tuple[int, int]] = {}  # process -> offset, value

    def add(self, offset: int, number: int) -> None:
        sends = self._sends
        process = sends.process[number]
        before = self._last.get(process)
        self._last[process] = offset, number
        if before is None or sends.invoked[before[1]] < sends.invoked[number]:
            return
        earlier, later = number, before[1]
        acked = sends.acked_offset[earlier] != NOWHERE and sends.acked_offset[later] != NOWHERE
        text = (
            f"{self._log.name}: {self._names[process]} sent {shown(sends.values[earlier])} before "
            f"{shown(sends.values[later])}; they are at offsets {offset} and {before[0]}"
        )
        self._findings.add(
            Anomaly.NONMONOTONIC_SEND if acked else Anomaly.REORDERED,
            text,
            (*sends.evidence(earlier), *sends.evidence(later)),
            (before[0], offset),
        )


@dataclass(slots=True)
class _Gap:
    """Sequences that are missing so far."""

    first_sequence: int
    length: int
    missing: int
    unstamped: int  # offsets that may hold some of them
    before: int  # the value before the gap, or NOWHERE
    after: int
    after_offset: int

    def __contains__(self, sequence: int) -> bool:
        return (sequence - self.first_sequence) % _SEQUENCES < self.length


@dataclass(slots=True)
class _Epoch:
    """One producer in one epoch, as far as the log has been followed."""

    last: int = NOWHERE  # value
    last_sequence: int = NOWHERE
    highest: int = NOWHERE  # value
    highest_sequence: int = NOWHERE
    unstamped: int = 0  # below the highest
    gaps: deque[_Gap] = field(default_factory=deque)


@dataclass(slots=True)
class _Producer:
    epoch: int  # its highest
    last: int  # value of that epoch
    unstamped: int = 0  # below `last`
    epochs: dict[int, _Epoch] = field(default_factory=dict)


class _ProducerOrder:
    """Each producer id's stamps."""

    def __init__(self, log: PartitionLog, sends: Sends, findings: Findings) -> None:
        self._log = log
        self._sends = sends
        self._findings = findings
        self._producers: dict[int, _Producer] = {}
        self._stamped = 0

    def add(self, offset: int, number: int) -> None:
        sends = self._sends
        producer_id, epoch, sequence = (
            sends.producer_id[number],
            sends.producer_epoch[number],
            sends.sequence[number],
        )
        unstamped = offset - self._stamped  # offsets below this one of which no stamp is known
        self._stamped += 1
        producer = self._producers.get(producer_id)
        if producer is None:
            producer = self._producers[producer_id] = _Producer(epoch, NOWHERE)
        if epoch < producer.epoch:
            self._out_of_order(offset, number, producer.last)
        state = producer.epochs.get(epoch)
        if state is None:
            state = producer.epochs[epoch] = _Epoch(unstamped=producer.unstamped)
            self._rise(state, offset, number, sequence, unstamped)
        elif (sequence - state.highest_sequence - 1) % _SEQUENCES < _SEQUENCES // 2:
            self._rise(state, offset, number, sequence, unstamped)
        else:
            self._fall(state, offset, number, sequence)
        state.last, state.last_sequence = number, sequence
        if epoch >= producer.epoch:
            producer.epoch, producer.last, producer.unstamped = epoch, number, unstamped

    def _rise(self, state: _Epoch, offset: int, number: int, sequence: int, unstamped: int) -> None:
        """A sequence above all before it; those between are missing so far."""
        missing = (sequence - state.highest_sequence - 1) % _SEQUENCES
        between = unstamped - state.unstamped
        if missing > between:
            first = (state.highest_sequence + 1) % _SEQUENCES
            state.gaps.append(_Gap(first, missing, missing, between, state.highest, number, offset))
            if len(state.gaps) > MAX_GAPS:
                self._gap(state.gaps.popleft())
        state.highest, state.highest_sequence, state.unstamped = number, sequence, unstamped

    def _fall(self, state: _Epoch, offset: int, number: int, sequence: int) -> None:
        """A sequence that a higher one stands before; it may fill a gap."""
        for gap in state.gaps:
            if sequence in gap:
                gap.missing -= 1
        if sequence == state.last_sequence:
            self._repeated(offset, number, state.last)
        elif (sequence - state.last_sequence) % _SEQUENCES >= _SEQUENCES // 2:
            self._out_of_order(offset, number, state.last)

    def finish(self) -> None:
        """After the last record: gaps that nothing has filled."""
        for producer in self._producers.values():
            for state in producer.epochs.values():
                for gap in state.gaps:
                    self._gap(gap)

    # ---- Findings ----

    def _stamp(self, number: int) -> str:
        sends = self._sends
        return f"epoch {sends.producer_epoch[number]} sequence {sends.sequence[number]}"

    def _out_of_order(self, offset: int, number: int, before: int) -> None:
        sends = self._sends
        text = (
            f"{self._log.name}: producer {sends.producer_id[number]}'s {self._stamp(number)} is at offset {offset}, "
            f"after {self._stamp(before)}"
        )
        self._findings.add(Anomaly.REORDERED, text, (*sends.evidence(before), *sends.evidence(number)), (offset,))

    def _repeated(self, offset: int, number: int, before: int) -> None:
        sends = self._sends
        text = (
            f"{self._log.name}: producer {sends.producer_id[number]}'s {self._stamp(number)} stands twice: "
            f"{shown(sends.values[before])}, and {shown(sends.values[number])} at offset {offset}"
        )
        self._findings.add(Anomaly.DUPLICATE, text, (*sends.evidence(before), *sends.evidence(number)), (offset,))

    def _gap(self, gap: _Gap) -> None:
        if gap.missing <= gap.unstamped:
            return
        sends, after = self._sends, gap.after
        last = (gap.first_sequence + gap.length - 1) % _SEQUENCES
        which = f"sequence {last}" if gap.length == 1 else f"{gap.missing} of the sequences {gap.first_sequence}-{last}"
        text = (
            f"{self._log.name}: {which} of producer {sends.producer_id[after]} epoch {sends.producer_epoch[after]} "
            f"cannot be in the log before sequence {sends.sequence[after]} at offset {gap.after_offset}"
        )
        before = sends.evidence(gap.before) if gap.before != NOWHERE else ()
        self._findings.add(Anomaly.SEQUENCE_GAP, text, (*before, *sends.evidence(after)), (gap.after_offset,))
