"""What members of a group were given, kept while they read and compared with the log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fencepost import ConsumerRecord
from fencepost_testing.failures import CommandFailed
from fencepost_testing.log_check.findings import Findings, Kind
from fencepost_testing.read_log import SUFFIX, ReadCheck, ReadLog


def record(offset: int, value: bytes | None = None, partition: int = 0) -> ConsumerRecord:
    return ConsumerRecord("orders", partition, offset, 0, None, b"%d" % offset if value is None else value, [])


def kept(folder: Path, name: str, group: str, *polls: Sequence[ConsumerRecord]) -> None:
    log = ReadLog(folder / f"{name}{SUFFIX}", group)
    for records in polls:
        log.add(records)
    log.close()


def checked(folder: Path, end: int = 6) -> Findings:
    """Against a log of one partition, in which each value is its offset."""
    check = ReadCheck("orders", sorted(folder.glob(f"*{SUFFIX}")))
    for offset in range(end):
        check.add(0, offset, b"%d" % offset)
    return check.finish()


def test_members_that_have_read_everything_between_them_once_or_twice_are_right(tmp_path: Path) -> None:
    kept(tmp_path, "a", "g", [record(1), record(2)], [record(3)])
    kept(tmp_path, "b", "g", [record(3), record(4), record(5)], [])
    assert checked(tmp_path).clean
    check = ReadCheck("orders", sorted(tmp_path.glob(f"*{SUFFIX}")))
    assert check.records == 6


def test_a_record_that_nobody_in_the_group_was_given_is_skipped(tmp_path: Path) -> None:
    kept(tmp_path, "a", "g", [record(0), record(1), record(3)])
    kept(tmp_path, "b", "other", [record(2)])
    found = checked(tmp_path)
    assert found.counts == {Kind.SKIPPED: 1}
    assert "orders-0 offset 2: 'g'" in found.examples[0]


def test_another_value_and_a_record_behind_the_end_are_misread(tmp_path: Path) -> None:
    kept(tmp_path, "a", "g", [record(4), record(5, b"else"), record(6), record(6, partition=1)])
    found = checked(tmp_path)
    assert found.counts == {Kind.MISREAD: 3}


def test_a_run_that_was_killed_while_it_wrote_counts_up_to_there(tmp_path: Path) -> None:
    kept(tmp_path, "a", "g", [record(0)], [record(1)])
    file = tmp_path / f"a{SUFFIX}"
    file.write_text(file.read_text()[:-3])
    assert checked(tmp_path).clean
    file.write_text('{"group": "g"}\n[0, 1]\n')
    with pytest.raises(CommandFailed, match="is not what a workload has read"):
        checked(tmp_path)
