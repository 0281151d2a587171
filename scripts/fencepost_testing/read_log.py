"""What members of a group have read, kept on disk while they read, and its comparison with the log.

One file for each run, a line of JSON for each poll: `[partition, first offset, [CRC of each value, …]]` for each run of
offsets in it. A line is in the file before the client may commit what it tells of: so where a member is killed, whatever it
has committed was noted. `ReadCheck` is fed the log, and says where a member was given something else (misread), or where
nobody in the group was given anything (skipped).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import IO

from fencepost.history import PolledRecord
from fencepost_testing.failures import CommandFailed
from fencepost_testing.log_check.findings import Findings, Kind

SUFFIX = ".reads"
_HEAD = "group"


class ReadLog:
    """Writes one run's file. `group` "": it is in none, and is judged alone."""

    def __init__(self, file: Path, group: str) -> None:
        self._lines: IO[str] = file.open("w", encoding="utf-8")
        self._lines.write(json.dumps({_HEAD: group}) + "\n")

    def add(self, records: Sequence[PolledRecord]) -> None:
        """What one poll has brought."""
        for partition, found in groupby(records, lambda record: record.partition):
            run: list[int] = []
            first = last = -1
            for record in found:
                if run and record.offset != last + 1:
                    self._write(partition, first, run)
                    run = []
                if not run:
                    first = record.offset
                run.append(_crc(record.value))
                last = record.offset
            self._write(partition, first, run)
        self._lines.flush()

    def _write(self, partition: int, first: int, crcs: list[int]) -> None:
        self._lines.write(json.dumps([partition, first, crcs]) + "\n")

    def close(self) -> None:
        self._lines.close()


class ReadCheck:
    """Feed it the log, each partition in offset order, then `finish`."""

    def __init__(self, topic: str, files: Iterable[Path]) -> None:
        self.records = 0  # that were read, of all runs
        self._topic = topic
        self._read: dict[tuple[str, int, int], set[int]] = {}  # by group, partition and offset: CRCs
        self._spans: dict[int, dict[str, tuple[int, int]]] = {}  # by partition and group: first and last offset read
        self._findings = Findings()
        for file in files:
            self._load(file)

    def _load(self, file: Path) -> None:
        group = ""
        for line in _whole_lines(file):
            try:
                told = json.loads(line)
                if isinstance(told, dict):
                    group = str(told[_HEAD]) or file.stem
                    continue
                partition, first, crcs = told
                for offset, crc in enumerate(crcs, first):
                    self._enter(group, partition, offset, crc)
            except (ValueError, TypeError, KeyError) as error:
                raise CommandFailed(f"{file} is not what a workload has read: {error!r}") from error

    def _enter(self, group: str, partition: int, offset: int, crc: int) -> None:
        self.records += 1
        self._read.setdefault((group, partition, offset), set()).add(crc)
        spans = self._spans.setdefault(partition, {})
        first, last = spans.get(group, (offset, offset))
        spans[group] = min(first, offset), max(last, offset)

    def add(self, partition: int, offset: int, value: bytes | None) -> None:
        """What stands in the log."""
        for group, (first, last) in self._spans.get(partition, {}).items():
            if not first <= offset <= last:
                continue
            where = f"{self._topic}-{partition} offset {offset}: {group!r}"
            crcs = self._read.pop((group, partition, offset), None)
            if crcs is None:
                self._findings.add(Kind.SKIPPED, f"{where} has read before and behind it, and not this record")
            elif crcs != {_crc(value)}:
                self._findings.add(Kind.MISREAD, f"{where} was given another record")

    def finish(self) -> Findings:
        """After the last record. What retention has removed since it was read counts as misread."""
        for group, partition, offset in sorted(self._read):
            self._findings.add(
                Kind.MISREAD,
                f"{self._topic}-{partition} offset {offset}: {group!r} was given a record that is not there",
            )
        return self._findings


def _whole_lines(file: Path) -> Iterator[str]:
    """A run that was killed may have left a part of a line at the end."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield line


def _crc(value: bytes | None) -> int:
    return zlib.crc32(value or b"")
