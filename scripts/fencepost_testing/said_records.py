"""What a test says that it sent and read, as operations of a history. Pure.

A record may be said as its value alone, or as any client's own object: an attribute or method `value`, and `partition`,
`offset` and `key` where there are. Values identify records, so those that were sent must differ from each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from fencepost.history_format import Operation, Value
from fencepost_testing.failures import CommandFailed

Stored = Sequence[tuple[int, Sequence[tuple[int, bytes | None]]]]  # partitions, and their records' offsets and values
READER, SENDER, LOG = "read", "sent", "log"


class NotARecord(CommandFailed, TypeError):
    """A test named something as a record that cannot be one."""


@dataclass(frozen=True, slots=True)
class SaidRecord:
    """One record, as far as the test tells."""

    value: bytes
    partition: int = -1  # not told
    offset: int = -1


def said_records(records: Iterable[object], what: str) -> list[SaidRecord]:
    """Raises NotARecord, naming the one."""
    return [_said(record, what) for record in records]


def _said(record: object, what: str) -> SaidRecord:
    if isinstance(record, str | bytes | bytearray | memoryview):
        return SaidRecord(_bytes(record, what))
    if not hasattr(record, "value"):
        raise NotARecord(f"{what}: {record!r} is neither a value (bytes or text) nor a client's record with one")
    error = getattr(record, "error", None)
    if callable(error) and error() is not None:
        raise NotARecord(f"{what}: {record!r} is no record, but the error {error()}")
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
    stored: Stored,
    sent: list[SaidRecord] | None,
    unacknowledged: list[SaidRecord],
    read: list[SaidRecord] | None,
    *,
    ordered: bool,
) -> tuple[list[Operation], list[str]]:
    """The history of all sends, of what was read, and of the log itself as its final read.

    `ordered`: all were handed to one producer, in this order. The second value: what was read and can be nowhere.
    """
    clock = count(1)
    operations = list(_sends(topic, clock, sent or [], unacknowledged, ordered=ordered))
    unplaced: list[str] = []
    if read is not None:
        operations += _reads(topic, clock, stored, read, unplaced)
    for partition, records in stored:
        start = records[0][0] if records else 0
        end = records[-1][0] + 1 if records else 0
        operations.append(Operation(LOG, next(clock), "invoke", "final", topic=topic, partition=partition))
        operations.append(Operation(LOG, next(clock), "ok", "seek", topic=topic, partition=partition, offset=start))
        if records:
            operations.append(
                Operation(LOG, next(clock), "ok", "poll", topic=topic, partition=partition, records=_said_as(records))
            )
        operations.append(
            Operation(
                LOG, next(clock), "ok", "final", topic=topic, partition=partition, start_offset=start, end_offset=end
            )
        )
    return operations, unplaced


def _sends(
    topic: str, clock: Iterator[int], sent: list[SaidRecord], unacknowledged: list[SaidRecord], *, ordered: bool
) -> Iterator[Operation]:
    seen: set[bytes] = set()
    records = [(record, True) for record in sent] + [(record, False) for record in unacknowledged]
    for number, (record, acknowledged) in enumerate(records):
        if record.value in seen:
            raise NotARecord(f"sent: {record.value!r} twice; records are told apart by their values")
        seen.add(record.value)
        process = SENDER if ordered and acknowledged else f"{SENDER} {number}"
        value = _text(record.value)
        yield Operation(process, next(clock), "invoke", "send", id=number, topic=topic, value=value)
        if acknowledged:
            yield Operation(
                process,
                next(clock),
                "ok",
                "send",
                id=number,
                topic=topic,
                partition=record.partition,
                offset=record.offset if record.partition >= 0 else -1,
            )


def _reads(
    topic: str, clock: Iterator[int], stored: Stored, read: list[SaidRecord], unplaced: list[str]
) -> Iterator[Operation]:
    """Each as one poll, at the place that it names or at which its value stands."""
    places: dict[bytes, list[tuple[int, int]]] = {}
    for partition, records in stored:
        for offset, value in records:
            places.setdefault(value or b"", []).append((partition, offset))
    begun: set[int] = set()
    handed: set[tuple[int, int]] = set()
    for record in read:
        place = (record.partition, record.offset)
        if min(place) < 0:
            found = places.get(record.value, [])
            if not found:
                unplaced.append(f"{record.value!r} was read, and is not in the log of {topic!r}")
                continue
            place = next((each for each in found if each not in handed), found[0])
        handed.add(place)
        partition, offset = place
        if partition not in begun:  # it may have begun anywhere
            begun.add(partition)
            yield Operation(READER, next(clock), "ok", "seek", topic=topic, partition=partition, offset=offset)
        yield Operation(
            READER,
            next(clock),
            "ok",
            "poll",
            topic=topic,
            partition=partition,
            records=((offset, _text(record.value)),),
        )
    for partition, records in stored:
        missed = [offset for offset, _ in records if (partition, offset) not in handed]
        if missed:
            unplaced.append(
                f"{len(missed)} records of {topic}-{partition} were never read, the first at offset {missed[0]}"
            )


def _said_as(records: Sequence[tuple[int, bytes | None]]) -> tuple[tuple[int, Value], ...]:
    return tuple((offset, None if value is None else _text(value)) for offset, value in records)


def _text(value: bytes) -> str | bytes:
    """As histories have it: text where it is UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
