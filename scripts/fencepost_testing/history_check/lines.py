"""Checks a history that is at hand as lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fencepost.history_format import NotAnOperation, Operation, from_line
from fencepost_testing.history_check.anomalies import Verdict
from fencepost_testing.history_check.check import BrokenHistory, HistoryCheck
from fencepost_testing.history_check.context import with_operations


def check_history(
    lines: Iterable[str | Operation], *, foreign_records: bool = False, one_partition_per_key: bool = False
) -> Verdict:
    """Check lines, or operations, in the order of time. Raises BrokenHistory naming the line's number.

    The findings show the operations around them unless `lines` is an iterator, which can be gone through only once.
    """
    check = HistoryCheck(foreign_records=foreign_records, one_partition_per_key=one_partition_per_key)
    for number, line in enumerate(lines, 1):
        try:
            if (operation := _operation(line)) is not None:
                check.feed(operation)
        except (NotAnOperation, BrokenHistory) as error:
            raise BrokenHistory(f"line {number}: {error}") from None
    verdict = check.finish()
    if verdict.clean or iter(lines) is lines:
        return verdict
    return with_operations(verdict, _again(lines))


def _operation(line: str | Operation) -> Operation | None:
    """None for an empty line."""
    if isinstance(line, Operation):
        return line
    return from_line(line) if line.strip() else None


def _again(lines: Iterable[str | Operation]) -> Iterator[tuple[str, Operation]]:
    for number, line in enumerate(lines, 1):
        if (operation := _operation(line)) is not None:
            yield str(number), operation
