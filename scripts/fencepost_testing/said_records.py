"""What a test says that it sent and read, as operations of a history. Pure.

A record may be said as its value alone, or as any client's own object: an attribute or method `value`, and `partition`,
`offset` and `topic` where there are. Values identify records, so those that were sent must differ from each other. Only
where all records of one value carry partition and offset, these tell them apart: the history then has them in the value.

What lies below a log's start has been deleted: it is asked of no one. It may have been sent, which files may still show, and
read before, which is not looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fencepost.history_format import Operation, Value
from fencepost_testing.failures import CommandFailed

READER, SENDER, LOG = "read", "sent", "log"
_NO_TIME = -1  # of an operation: only the order is known


class StoredLog(NamedTuple):
    """What stands in a partition's file."""

    partition: int
    records: Sequence[tuple[int, bytes | None]]  # offset and value
    start_offset: int = 0  # what is below has been deleted, though the file may still have it


class NotARecord(CommandFailed, TypeError):
    """A test named something as a record that cannot be one."""


@dataclass(frozen=True, slots=True)
class SaidRecord:
    """One record, as far as the test tells."""

    value: bytes
    partition: int = -1  # not told
    offset: int = -1

    @property
    def has_place(self) -> bool:
        return self.partition >= 0 and self.offset >= 0


def said_records(records: object, what: str, topic: str) -> list[SaidRecord]:
    """Raises NotARecord, naming the one that is none, or is of another topic."""
    if isinstance(records, str | bytes | bytearray | memoryview):
        raise NotARecord(f"{what}={records!r}: this is one value, and records are wanted: {what}=[{records!r}]")
    if not isinstance(records, Iterable):
        raise NotARecord(f"{what}={records!r}: records are wanted, in a list or any other iterable")
    return [_said(record, what, topic) for record in records]


def _said(record: object, what: str, topic: str) -> SaidRecord:
    if isinstance(record, str | bytes | bytearray | memoryview):
        return SaidRecord(_bytes(record, what))
    if not hasattr(record, "value"):
        raise NotARecord(f"{what}: {record!r} is neither a value (bytes or text) nor a client's record with one")
    error = getattr(record, "error", None)
    if callable(error) and error() is not None:
        raise NotARecord(f"{what}: {record!r} is no record, but the error {error()}")
    of_topic = _get(record, "topic")
    if isinstance(of_topic, str) and of_topic != topic:
        raise NotARecord(f"{what}: {record!r} is a record of topic {of_topic!r}, and topic {topic!r} is checked")
    return SaidRecord(
        _bytes(_get(record, "value"), what), _number(_get(record, "partition")), _number(_get(record, "offset"))
    )


def _get(record: object, name: str) -> object:
    value = getattr(record, name, None)
    return value() if callable(value) else value


def _number(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else -1


def _bytes(value: object, what: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise NotARecord(f"{what}: a record's value is {value!r}; only bytes or text tell one record from another")


def operations_of(
    topic: str,
    stored: Sequence[StoredLog],
    sent: list[SaidRecord] | None,
    unacknowledged: list[SaidRecord],
    read: list[SaidRecord] | None,
    *,
    ordered: bool,
) -> tuple[list[Operation], list[str]]:
    """The history of all sends, of what was read, and of the log itself as its final read.

    `ordered`: all were handed to one producer, in this order. The second value: what was read and can be nowhere, and what
    nobody read.
    """
    said = [*(sent or ()), *unacknowledged]
    story = _Story(topic, stored, said, _told_by_place(said, read or []), whole=sent is not None or read is not None)
    operations = list(story.sends(sent or [], unacknowledged, ordered=ordered))
    unplaced: list[str] = []
    if read is not None:
        operations += story.reads(read, unplaced)
    for log in stored:
        operations += story.final_read(log)
    return operations, unplaced


def _told_by_place(said: list[SaidRecord], read: list[SaidRecord]) -> set[bytes]:
    """The values of several records, each of which carries its place: of those that were sent; without any, of those that
    were read. Raises NotARecord where what was sent cannot be told apart."""
    by_value: dict[bytes, list[SaidRecord]] = defaultdict(list)
    for record in said or read:
        by_value[record.value].append(record)
    by_place = set()
    for value, records in by_value.items():
        if len(records) == 1:
            continue
        if len({(each.partition, each.offset) for each in records if each.has_place}) == len(records):
            by_place.add(value)
        elif said:
            raise NotARecord(
                f"sent: {value!r} {'twice' if len(records) == 2 else f'{len(records)} times'}; records are told apart by "
                "their values, or by partition and offset where each carries both and no two the same"
            )
    return by_place


class _Story:
    """Tells operations of one topic."""

    def __init__(
        self, topic: str, stored: Sequence[StoredLog], said: list[SaidRecord], by_place: set[bytes], *, whole: bool
    ) -> None:
        self._topic = topic
        self._stored = stored
        self._starts = {log.partition: log.start_offset for log in stored}
        self._by_place = by_place
        self._whole = whole  # all that is in the log is looked at, not only what the test has sent
        self._said = {self._identity(each.value, each.partition, each.offset) for each in said}

    def _identity(self, value: bytes, partition: int, offset: int) -> Value:
        """The value by which the history knows a record: text where it is UTF-8."""
        if value in self._by_place:
            value += f" ({self._topic}-{partition} offset {offset})".encode()
        return _text(value)

    def sends(self, sent: list[SaidRecord], unacknowledged: list[SaidRecord], *, ordered: bool) -> Iterator[Operation]:
        records = [(record, True) for record in sent] + [(record, False) for record in unacknowledged]
        for number, (record, acknowledged) in enumerate(records):
            process = SENDER if ordered and acknowledged else f"{SENDER} {number}"
            value = self._identity(record.value, record.partition, record.offset)
            yield Operation(process, _NO_TIME, "invoke", "send", id=number, topic=self._topic, value=value)
            if acknowledged:
                yield Operation(
                    process,
                    _NO_TIME,
                    "ok",
                    "send",
                    id=number,
                    topic=self._topic,
                    partition=record.partition,
                    offset=record.offset if record.partition >= 0 else -1,
                )

    def reads(self, read: list[SaidRecord], unplaced: list[str]) -> Iterator[Operation]:
        """Each as one poll, at the place that it names or at which its value stands."""
        topic = self._topic
        places: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
        for log in self._stored:
            for offset, standing in log.records:
                places[standing or b""].append((log.partition, offset))
        standing_at = {place for found in places.values() for place in found}
        begun: set[int] = set()
        handed: set[tuple[int, int]] = set()
        for record in read:
            partition, offset = record.partition, record.offset
            if not record.has_place:
                found = places.get(record.value, [])
                if not found:
                    unplaced.append(f"{record.value!r} was read, and is not in the log of {topic!r}")
                    continue
                partition, offset = next((each for each in found if each not in handed), found[0])
            handed.add((partition, offset))
            if offset < self._starts.get(partition, 0):
                continue
            if (partition, offset) not in standing_at:
                where = f"{topic}-{partition} offset {offset}"
                unplaced.append(f"{record.value!r} was read at {where}, where the log has no record")
                continue
            value = self._identity(record.value, partition, offset)
            if partition not in begun:  # it may have begun anywhere
                begun.add(partition)
                yield Operation(READER, _NO_TIME, "ok", "seek", topic=topic, partition=partition, offset=offset)
            yield Operation(
                READER, _NO_TIME, "ok", "poll", topic=topic, partition=partition, records=((offset, value),)
            )
        for log in self._stored:
            missed = [
                offset
                for offset, _ in log.records
                if offset >= log.start_offset and (log.partition, offset) not in handed
            ]
            name = f"{topic}-{log.partition}"
            if len(missed) == 1:
                unplaced.append(f"1 record of {name} was never read, at offset {missed[0]}")
            elif missed:
                unplaced.append(f"{len(missed)} records of {name} were never read, the first at offset {missed[0]}")

    def final_read(self, log: StoredLog) -> Iterator[Operation]:
        records: list[tuple[int, Value]] = []
        for offset, standing in log.records:
            value = None if standing is None else self._identity(standing, log.partition, offset)
            if (self._whole and offset >= log.start_offset) or value in self._said:
                records.append((offset, value))
        start = records[0][0] if records else log.start_offset
        end = records[-1][0] + 1 if records else start
        topic, partition = self._topic, log.partition
        yield Operation(LOG, _NO_TIME, "invoke", "final", topic=topic, partition=partition)
        yield Operation(LOG, _NO_TIME, "ok", "seek", topic=topic, partition=partition, offset=start)
        if records:
            yield Operation(LOG, _NO_TIME, "ok", "poll", topic=topic, partition=partition, records=tuple(records))
        yield Operation(
            LOG, _NO_TIME, "ok", "final", topic=topic, partition=partition, start_offset=start, end_offset=end
        )


def _text(value: bytes) -> str | bytes:
    """As histories have it: text where it is UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
