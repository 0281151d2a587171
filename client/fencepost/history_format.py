"""A history: what clients asked of a log and what they were told, one JSON object a line. Pure; no I/O.

Recorders write it, `fencepost check` reads it. Every operation of a client is an *invocation*, written before anything
is sent, and a *completion*, written once its outcome is known:

    {"process":"p1","index":7,"time_ns":12,"type":"invoke","op":"send","topic":"orders","key":"k","value":"a:7"}
    {"process":"p1","index":7,"time_ns":90,"type":"ok","op":"send","topic":"orders","partition":0,"offset":41,
     "producer":{"id":1000,"epoch":0,"sequence":3}}

`process`     one sequential caller: a producer or a consumer from its opening to its closing. It may have many sends
              outstanding, but hands them over one after another. A client that is opened again is another process.
`index`       numbers the operations of a process in the order of their invocation; (process, index) ties a completion
              to its invocation.
`time_ns`     of one clock for the whole history, such as the event loop's. Several files are merged by it.
`type`        invoke; ok: it happened; fail: it certainly did not; info: unknown. A fail with
              "may_have_been_appended": true counts as info, and so does an invocation without a completion.

| op     | lines                                                                                                |
|--------|------------------------------------------------------------------------------------------------------|
| send   | invoke: value, unique in its topic; key and partition where known. ok: partition, and offset unless   |
|        | the broker no longer remembers it (null or -1). Completions may carry the record's producer stamp.    |
| poll   | ok: records [[offset, value], …] of one partition in the order in which they were handed out, and the |
|        | high watermark that the consumer knew then. No other line is needed.                                  |
| assign | ok: the process reads this partition next from `offset`; null: from wherever the next poll begins     |
| seek   | the same. Also where a consumer's position was reset for it.                                          |
| final  | invoke: all sends have completed or never will; the process now reads the partition whole, from its   |
|        | log start `offset`. ok: it has read everything below `offset`, the end.                               |

A consumer that polls a partition without assign, seek or final has read it from its beginning.
Values and keys are text: see `text_of` for bytes. Fields that are null may be left out; unknown fields are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, cast

OperationType = Literal["invoke", "ok", "fail", "info"]
OperationName = Literal["send", "poll", "assign", "seek", "final"]
ReadRecord = tuple[int, str | None]  # offset, value

MAX_TEXT_BYTES = 64  # a longer key or value is written as its beginning and a digest
_SHOWN_BYTES = 32
_DIGEST_BYTES = 16

_TYPES = frozenset(("invoke", "ok", "fail", "info"))
_NAMES = frozenset(("send", "poll", "assign", "seek", "final"))
_NO_RECORDS: Sequence[ReadRecord] = ()


class NotAnOperation(ValueError):
    """A line that is not part of a history. Says what is wrong with it."""


class RecordStamp(NamedTuple):
    """What makes one record recognisable to every broker."""

    producer_id: int
    epoch: int
    sequence: int  # of the record itself: its batch's base sequence + its place in the batch


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of a history."""

    process: str
    index: int
    time_ns: int
    type: OperationType
    op: OperationName
    topic: str
    partition: int | None = None
    key: str | None = None
    value: str | None = None
    offset: int | None = None
    producer: RecordStamp | None = None
    high_watermark: int | None = None
    records: Sequence[ReadRecord] = _NO_RECORDS
    error: str | None = None
    may_have_been_appended: bool = False


def text_of(data: bytes | None) -> str | None:
    """A key or value as a history holds it: short UTF-8 as it is, anything else by its beginning and its digest."""
    if data is None:
        return None
    if len(data) <= MAX_TEXT_BYTES:
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
    return f"{data[:_SHOWN_BYTES].decode(errors='backslashreplace')}…{blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()}"


def to_line(operation: Operation) -> str:
    """One line, without its end."""
    fields: dict[str, Any] = {
        name: value
        for name in Operation.__slots__
        if (value := getattr(operation, name)) is not None and value is not False and value is not _NO_RECORDS
    }
    if operation.producer is not None:
        producer_id, epoch, sequence = operation.producer
        fields["producer"] = {"id": producer_id, "epoch": epoch, "sequence": sequence}
    return json.dumps(fields, separators=(",", ":"))


def from_line(line: str | bytes) -> Operation:
    """Raises NotAnOperation for anything but an operation that says all that its kind must say."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise NotAnOperation(f"not JSON: {error}") from None
    if type(fields) is not dict:
        raise NotAnOperation(f"a JSON object is expected, not {type(fields).__name__}")
    get = fields.get
    kind, name = get("type"), get("op")
    if type(kind) is not str or kind not in _TYPES:
        raise NotAnOperation(f"type is {kind!r}, not one of {', '.join(sorted(_TYPES))}")
    if type(name) is not str or name not in _NAMES:
        raise NotAnOperation(f"op is {name!r}, not one of {', '.join(sorted(_NAMES))}")
    process, index, time_ns, topic = get("process"), get("index"), get("time_ns"), get("topic")
    if type(process) is not str or not process:
        raise NotAnOperation(f"process is {process!r}, not a name")
    if type(index) is not int or index < 0:
        raise NotAnOperation(f"index is {index!r}, not a number of 0 or more")
    if type(time_ns) is not int:
        raise NotAnOperation(f"time_ns is {time_ns!r}, not a whole number")
    if type(topic) is not str or not topic:
        raise NotAnOperation(f"topic is {topic!r}, not a name")
    operation = Operation(
        process,
        index,
        time_ns,
        cast(OperationType, kind),
        cast(OperationName, name),
        topic,
        _number(fields, "partition"),
        _text(fields, "key"),
        _text(fields, "value"),
        _number(fields, "offset"),
        None if (producer := get("producer")) is None else _stamp(producer),
        _number(fields, "high_watermark"),
        _NO_RECORDS if (records := get("records")) is None else _records(records),
        _text(fields, "error"),
        get("may_have_been_appended", False) is True,
    )
    _check_complete(operation)
    return operation


def _number(fields: dict[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int or value < -1:
        raise NotAnOperation(f"{name} is {value!r}, not a number of 0 or more, nor -1 or null for none")
    return value if value >= 0 else None


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and type(value) is not str:
        raise NotAnOperation(f"{name} is {value!r}, not text")
    return value


def _stamp(value: Any) -> RecordStamp:
    if type(value) is dict:
        parts = value.get("id"), value.get("epoch"), value.get("sequence")
        if all(type(part) is int and part >= 0 for part in parts):
            return RecordStamp(*cast(tuple[int, int, int], parts))
    raise NotAnOperation(f'producer is {value!r}, not {{"id": …, "epoch": …, "sequence": …}}')


def _records(value: Any) -> Sequence[ReadRecord]:
    if type(value) is not list:
        raise NotAnOperation(f"records is {value!r}, not a list")
    for record in value:
        if not (
            type(record) is list
            and len(record) == 2
            and type(record[0]) is int
            and record[0] >= 0
            and (record[1] is None or type(record[1]) is str)
        ):
            raise NotAnOperation(f"records has {record!r}, not [offset, value]")
    return cast(Sequence[ReadRecord], value)  # pairs stay lists: a million tuples are not worth the difference


def _check_complete(operation: Operation) -> None:
    """What the checker cannot do without."""
    kind, name = operation.type, operation.op
    if name == "send":
        if kind == "invoke" and operation.value is None:
            raise NotAnOperation("a send without a value: records are told apart by their values")
        if kind == "ok" and operation.partition is None:
            raise NotAnOperation("an acknowledged send without a partition")
    elif operation.partition is None and (kind == "ok" or name == "final"):
        raise NotAnOperation(f"{name} without a partition")
    if name == "final" and kind in ("invoke", "ok") and operation.offset is None:
        raise NotAnOperation("a final read without an offset: where it begins (invoke), where it ended (ok)")
