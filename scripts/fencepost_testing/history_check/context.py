"""Shows findings among the operations around them, by going through the history a second time.

The check itself keeps only the ordinals of lines. So a history of any length costs nothing for what is shown of it, and a
clean one is read once.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from fencepost.history_format import Operation
from fencepost_testing.history_check.anomalies import Finding, Shown, Verdict, printable
from fencepost_testing.history_check.sends import shown

AROUND = 2  # lines before and after each piece of evidence, of the same partition or process
_RECORDS_AROUND = 2  # in a poll of many records

Where = tuple[str, int] | str  # a partition, or a process whose operation names none


def with_operations(verdict: Verdict, history: Iterable[tuple[str, Operation]]) -> Verdict:
    """The verdict's findings with what stands around them. `history`: the same operations again, and where each is."""
    gatherer = _Gatherer(verdict.findings)
    for ordinal, (where, operation) in enumerate(history, 1):
        gatherer.add(ordinal, where, operation)
        if gatherer.done(ordinal):
            break
    findings = (replace(finding, operations=operations) for finding, operations in gatherer.gathered())
    return replace(verdict, findings=tuple(findings))


class _Gatherer:
    def __init__(self, findings: tuple[Finding, ...]) -> None:
        self._findings = findings
        self._lines: list[dict[int, Shown]] = [{} for _ in findings]
        self._of_ordinal: dict[int, list[int]] = defaultdict(list)  # line -> indexes of findings
        for index, finding in enumerate(findings):
            for ordinal in finding.evidence:
                self._of_ordinal[ordinal].append(index)
        self._last_ordinal = max(self._of_ordinal, default=0)
        self._before: dict[Where, deque[tuple[int, str, Operation]]] = defaultdict(lambda: deque(maxlen=AROUND))
        self._after: dict[Where, dict[int, int]] = {}  # finding -> how many more lines it takes

    def add(self, ordinal: int, where: str, operation: Operation) -> None:
        place: Where = (operation.topic, operation.partition) if operation.partition >= 0 else operation.process
        waiting = self._after.get(place)
        if waiting:
            for index in list(waiting):
                self._show(index, ordinal, where, operation, evidence=False)
                waiting[index] -= 1
                if not waiting[index]:
                    del waiting[index]
        for index in self._of_ordinal.get(ordinal, ()):
            for line in self._before[place]:
                self._show(index, *line, evidence=False)
            self._show(index, ordinal, where, operation, evidence=True)
            self._after.setdefault(place, {})[index] = AROUND
        self._before[place].append((ordinal, where, operation))

    def done(self, ordinal: int) -> bool:
        """Whether nothing that comes after this line can be shown."""
        return ordinal >= self._last_ordinal and not any(self._after.values())

    def gathered(self) -> Iterator[tuple[Finding, tuple[Shown, ...]]]:
        for finding, lines in zip(self._findings, self._lines, strict=True):
            yield finding, tuple(lines[ordinal] for ordinal in sorted(lines))

    def _show(self, index: int, ordinal: int, where: str, operation: Operation, *, evidence: bool) -> None:
        if evidence or ordinal not in self._lines[index]:
            text = describe(operation, self._findings[index].offsets)
            self._lines[index][ordinal] = Shown(where, text, evidence)


def describe(operation: Operation, offsets: tuple[int, ...] = ()) -> str:
    """One operation in a line; of a poll's records those around `offsets`. A negative time is not known."""
    words = [f"{operation.time_ns / 1e9:.6f} s"] if operation.time_ns >= 0 else []
    words += [operation.process, operation.op]
    if operation.id >= 0:
        words.append(f"#{operation.id}")
    words.append(operation.type)
    if operation.topic:
        words.append(f"{operation.topic}-{operation.partition}" if operation.partition >= 0 else operation.topic)
    if operation.value is not None and operation.op == "send":
        words.append(shown(operation.value))
    if operation.records:
        words.append(_records(operation, offsets))
    elif operation.offset >= 0:
        words.append(f"offset {operation.offset}")
    if operation.end_offset >= 0:
        words.append(f"offsets {operation.start_offset} to before {operation.end_offset}")
    if operation.producer is not None:
        words.append("producer {} epoch {} sequence {}".format(*operation.producer))
    if operation.high_watermark >= 0:
        words.append(f"high watermark {operation.high_watermark}")
    if operation.error is not None:
        words.append(operation.error)
    if operation.may_have_been_appended:
        words.append("(may have been appended)")
    return printable(" ".join(words))


def _records(operation: Operation, offsets: tuple[int, ...]) -> str:
    records = operation.records
    near = [
        index
        for index, (offset, _) in enumerate(records)
        if any(abs(offset - wanted) <= _RECORDS_AROUND for wanted in offsets)
    ]
    if len(records) <= 2 * _RECORDS_AROUND + 1:
        near = list(range(len(records)))
    told = [f"{records[index][0]}:{shown(records[index][1])}" for index in near]
    if len(near) == len(records):
        return f"[{', '.join(told)}]"
    return f"{len(records)} records, offsets {records[0][0]}-{records[-1][0]} [{', '.join(('…', *told, '…'))}]"
