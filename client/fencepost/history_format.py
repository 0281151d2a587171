"""The lines of a history as typed values: `History` writes them, `fencepost check` reads them. Pure; no I/O.

Every operation of a client is an *invocation*, written before anything is sent, and a *completion*, written once its
outcome is known. One JSON object a line:

    {"process":"p1","time":12,"type":"invoke","op":"send","id":7,"topic":"orders","key":"k","value":"a:7"}
    {"process":"p1","time":90,"type":"ok","op":"send","id":7,"topic":"orders","partition":0,"offset":41}

process   one sequential caller: a producer or a consumer from its opening to its closing. It may have many sends
          outstanding, but hands them over one after another.
time      ns of one clock for the whole history, such as the event loop's. Several files are merged by it.
type      invoke; ok: it happened; fail: it certainly did not; info: unknown, or something to know. A fail with
          "may_have_been_appended": true counts as info, and so does an invocation without a completion.
id        of a send: rises within a process, and ties its completion to its invocation. A send whose id does not rise
          is the first of another process, opened under the same name when the one before was gone.
value     text, or {"base64": …} where it is not UTF-8, or null. Values of sends are unique in their topic, never null.

op       what its lines say
send     invoke: value; key and partition where known. ok: partition, and offset unless the cluster no longer knew it
         (null or -1). Any completion: the record's stamp, "producer": {"id": …, "epoch": …, "sequence": …}, where known.
poll     ok: one record, as partition, offset and value, or several of one partition, as "records": [[offset, value], …]
         in the order in which they were handed out; with the high_watermark that the consumer knew. Other lines may be
         left out.
seek     any type but invoke: the process reads this partition next from `offset`; null: from wherever its next poll
         begins. Also where the consumer begins, and where its position was moved past what retention removed. A
         consumer that polls without it has read the partition from its beginning.
assign   the same as seek.
final    invoke: all sends have completed or never will, and the process begins to read this partition whole.
         ok: it has been handed everything from start_offset, the log's start, up to before end_offset, its end.
given    info: a member of a group has this partition from now on. taken: it has it no more. Both with the group.
commit   invoke: a member commits an offset of a partition, of its group; ok: it is stored; fail: certainly not. An id, as
         for sends.
elect    an unclean election, which an operator orders. invoke: the operator has been shown what is lost, and orders it:
         nothing below start_offset; everything acknowledged so far at end_offset, where the elected log ends, and above;
         between the two, what that log does not have. ok: the broker is elected; fail: certainly not. An id, as for sends.

Fields that are null may be left out. Unknown fields are ignored.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

OperationType = Literal["invoke", "ok", "fail", "info"]
OperationName = Literal["send", "poll", "seek", "assign", "final", "elect", "given", "taken", "commit"]
Value = str | bytes | None  # bytes only where they are not UTF-8
ReadRecord = tuple[int, Value]  # offset, value

_TYPES = frozenset(get_args(OperationType))
_NAMES = frozenset(get_args(OperationName))
_OF_A_GROUP = frozenset(("given", "taken", "commit"))
_NO_RECORDS: Sequence[ReadRecord] = ()


class NotAnOperation(ValueError):
    """A line that is not part of a history. Says what is wrong with it."""


class RecordStamp(NamedTuple):
    """Identifies one record to every broker."""

    producer_id: int
    epoch: int
    sequence: int  # of the record itself: its batch's base sequence + its place in the batch


class Operation(NamedTuple):
    """One line of a history. A poll's records are always in `records`."""

    process: str
    time_ns: int
    type: OperationType
    op: OperationName
    id: int = -1  # here and in the other numbers, -1: not known (yet)
    topic: str = ""
    partition: int = -1
    key: Value = None
    value: Value = None
    offset: int = -1
    producer: RecordStamp | None = None
    high_watermark: int = -1
    records: Sequence[ReadRecord] = _NO_RECORDS
    start_offset: int = -1
    end_offset: int = -1
    error: str | None = None
    may_have_been_appended: bool = False
    group: str = ""


_DEFAULTS = Operation._field_defaults


def to_line(operation: Operation) -> str:
    """One line, without its end."""
    fields: dict[str, Any] = {
        name: value
        for name, value in zip(Operation._fields, operation, strict=True)
        if name not in _DEFAULTS or value != _DEFAULTS[name]
    }
    fields["time"] = fields.pop("time_ns")
    for name in ("key", "value"):
        if name in fields:
            fields[name] = _value_to(fields[name])
    if operation.producer is not None:
        producer_id, epoch, sequence = operation.producer
        fields["producer"] = {"id": producer_id, "epoch": epoch, "sequence": sequence}
    if operation.records:
        fields["records"] = [[offset, _value_to(value)] for offset, value in operation.records]
    return json.dumps(fields, separators=(",", ":"))


def _value_to(value: Value) -> object:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def from_line(line: str | bytes) -> Operation:
    """The operation on a line. Raises NotAnOperation for anything else, also where a necessary field is missing."""
    try:
        fields: dict[str, Any] = json.loads(line.decode() if type(line) is bytes else line)
    except (ValueError, RecursionError) as error:
        raise NotAnOperation(f"not JSON: {error}") from None
    if type(fields) is not dict:
        raise NotAnOperation(f"a JSON object is expected, not {type(fields).__name__}")
    get = fields.get
    kind, name, process, time_ns = get("type"), get("op"), get("process"), get("time")
    if type(kind) is not str or kind not in _TYPES:
        raise NotAnOperation(f"type is {kind!r}, not one of {', '.join(get_args(OperationType))}")
    if type(name) is not str or name not in _NAMES:
        raise NotAnOperation(f"op is {name!r}, not one of {', '.join(get_args(OperationName))}")
    if type(process) is not str or not process:
        raise NotAnOperation(f"process is {process!r}, not a name")
    if type(time_ns) is not int:
        raise NotAnOperation(f"time is {time_ns!r}, not a whole number of ns")
    topic, partition, offset = (
        get("topic", ""),
        _number(get("partition"), "partition"),
        _number(get("offset"), "offset"),
    )
    if type(topic) is not str:
        raise NotAnOperation(f"topic is {topic!r}, not a name")
    value = get("value")
    if type(value) is not str and value is not None:
        value = _value_from(value)
    key, producer, reason = get("key"), get("producer"), get("error")
    records, high_watermark, start_offset, end_offset = _NO_RECORDS, -1, -1, -1
    if name == "poll":
        high_watermark = _number(get("high_watermark"), "high_watermark")
        if kind == "ok":
            records = _records(get("records"), offset, value)
    elif name in {"final", "elect"}:
        start_offset = _number(get("start_offset"), "start_offset")
        end_offset = _number(get("end_offset"), "end_offset")
    operation = Operation(
        process,
        time_ns,
        cast(OperationType, kind),
        cast(OperationName, name),
        _number(get("id"), "id"),
        topic,
        partition,
        key if key is None or type(key) is str else _value_from(key),
        value,
        offset,
        None if producer is None else _stamp(producer),
        high_watermark,
        records,
        start_offset,
        end_offset,
        None if reason is None else str(reason),
        get("may_have_been_appended", False) is True,
        _group(get("group")) if name in _OF_A_GROUP else "",
    )
    if lacking := _missing(operation):
        raise NotAnOperation(f"{kind} of {name} without {lacking}")
    return operation


def _number(value: Any, name: str) -> int:
    if value is None:
        return -1
    if type(value) is int and value >= -1:
        return value
    raise NotAnOperation(f"{name} is {value!r}, not a whole number of 0 or more, nor -1 or null for none")


def _group(value: Any) -> str:
    if type(value) is str and value:
        return value
    raise NotAnOperation(f"group is {value!r}, not a name")


def _value_from(value: Any) -> Value:
    if value is None or type(value) is str:
        return value
    if type(value) is dict and type(value.get("base64")) is str:
        try:
            return base64.b64decode(value["base64"], validate=True)
        except ValueError as error:
            raise NotAnOperation(f"{value!r} is not base64: {error}") from None
    raise NotAnOperation(f'{value!r} is neither text nor {{"base64": …}} nor null')


def _stamp(value: Any) -> RecordStamp:
    if type(value) is dict:
        stamp = RecordStamp(value.get("id", -1), value.get("epoch", -1), value.get("sequence", -1))
        if all(type(part) is int and part >= 0 for part in stamp):
            return stamp
    raise NotAnOperation(f'producer is {value!r}, not {{"id": …, "epoch": …, "sequence": …}}')


def _records(value: Any, offset: int, single: Value) -> Sequence[ReadRecord]:
    if value is None:
        return ((offset, single),) if offset >= 0 else _NO_RECORDS
    if type(value) is not list:
        raise NotAnOperation(f"records is {value!r}, not a list")
    for record in value:
        if not (type(record) is list and len(record) == 2 and type(record[0]) is int and record[0] >= 0):
            raise NotAnOperation(f"records has {record!r}, not [offset, value]")
    return [(at, text if type(text) is str else _value_from(text)) for at, text in value]


def _missing(operation: Operation) -> str:
    """The field that the checker needs and the operation lacks, in words; empty: none."""
    kind, name = operation.type, operation.op
    if name == "poll":
        if not operation.records:
            return ""
    elif name in {"send", "elect"}:
        if operation.id < 0:
            return "an id"
        if name == "send" and kind == "invoke" and operation.value is None:
            return "a value (records are identified by it)"
    if not operation.topic:
        return "a topic"
    if operation.partition < 0 and (kind == "ok" or name != "send"):
        return "a partition"
    of_offsets = (name == "final" and kind == "ok") or (name == "elect" and kind == "invoke")
    if of_offsets and not 0 <= operation.start_offset <= operation.end_offset:
        return "start_offset and end_offset, in this order"
    return ""
