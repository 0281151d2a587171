"""Lines of a history: what is refused, and what is understood."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencepost.history_format import NotAnOperation, Operation, RecordStamp, from_line, to_line

SEND: dict[str, Any] = {"process": "p", "time": 5, "type": "invoke", "op": "send", "id": 1, "topic": "t", "value": "v"}
ACK: dict[str, Any] = {"process": "p", "time": 6, "type": "ok", "op": "send", "id": 1, "topic": "t", "partition": 0}
POLL: dict[str, Any] = {
    "process": "c",
    "time": 7,
    "type": "ok",
    "op": "poll",
    "topic": "t",
    "partition": 0,
    "offset": 3,
}
FINAL: dict[str, Any] = {"process": "c", "time": 8, "type": "ok", "op": "final", "topic": "t", "partition": 0}


def read(line: dict[str, Any], **changes: Any) -> Operation:
    return from_line(json.dumps({**line, **changes}))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "not JSON"),
        ('{"process": "p"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "a JSON object is expected, not list"),
        (b"\xff\xfe{}", "not JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(line: str | bytes, complaint: str) -> None:
    with pytest.raises(NotAnOperation, match=complaint):
        from_line(line)


@pytest.mark.parametrize(
    ("line", "changes", "complaint"),
    [
        (SEND, {"type": "done"}, "type is 'done'"),
        (SEND, {"type": ["ok"]}, r"type is \['ok'\]"),
        (SEND, {"op": "write"}, "op is 'write'"),
        (SEND, {"process": 1}, "process is 1"),
        (SEND, {"process": ""}, "process is ''"),
        (SEND, {"time": 1.5}, "time is 1.5"),
        (SEND, {"id": True}, "id is True"),
        (SEND, {"id": None}, "invoke of send without an id"),
        (SEND, {"topic": 3}, "topic is 3"),
        (SEND, {"topic": ""}, "invoke of send without a topic"),
        (SEND, {"value": None}, "invoke of send without a value"),
        (SEND, {"value": 3}, "3 is neither text nor"),
        (SEND, {"value": {"base64": "?"}}, "is not base64"),
        (ACK, {"partition": None}, "ok of send without a partition"),
        (ACK, {"partition": -2}, "partition is -2"),
        (ACK, {"offset": "3"}, "offset is '3'"),
        (ACK, {"producer": {"id": 1, "epoch": 0}}, "producer is "),
        (POLL, {"partition": None}, "ok of poll without a partition"),
        (POLL, {"records": {}}, "records is {}"),
        (POLL, {"records": [[0]]}, r"records has \[0\]"),
        (POLL, {"records": [[-1, "v"]]}, r"records has \[-1, 'v'\]"),
        (POLL, {"records": [[0, 1]]}, "1 is neither text nor"),
        (POLL, {"op": "seek", "partition": None}, "ok of seek without a partition"),
        (FINAL, {}, "ok of final without start_offset and end_offset"),
        (FINAL, {"start_offset": 5, "end_offset": 4}, "ok of final without start_offset and end_offset"),
    ],
)
def test_a_line_that_lacks_or_garbles_something_is_refused(
    line: dict[str, Any], changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(NotAnOperation, match=complaint):
        read(line, **changes)


def test_a_poll_has_one_record_or_several_or_none() -> None:
    assert read(POLL, value="v").records == ((3, "v"),)
    assert read(POLL, value=None).records == ((3, None),)
    assert read(POLL, offset=None, records=[[4, "a"], [5, {"base64": "/w=="}]]).records == [(4, "a"), (5, b"\xff")]
    assert read(POLL, topic="", partition=None, offset=None).records == ()


def test_numbers_that_are_null_or_minus_one_are_not_known() -> None:
    assert read(ACK, offset=None).offset == read(ACK, offset=-1).offset == read(ACK).offset == -1


def test_unknown_fields_are_ignored() -> None:
    assert read(ACK, comment="hello") == read(ACK)


texts = st.text(max_size=20)
values = texts | st.binary(max_size=20)
numbers = st.integers(-1, 2**63 - 1)


@given(
    key=st.none() | values,
    value=values,
    partition=numbers,
    producer=st.none() | st.builds(RecordStamp, *(st.integers(0, 2**31) for _ in range(3))),
    error=st.none() | texts,
    uncertain=st.booleans(),
)
def test_an_operation_is_read_as_it_was_written(
    *,
    key: str | bytes | None,
    value: str | bytes,
    partition: int,
    producer: RecordStamp | None,
    error: str | None,
    uncertain: bool,
) -> None:
    operation = Operation(
        "p",
        1,
        "fail",
        "send",
        7,
        "t",
        partition,
        key,
        value,
        -1,
        producer,
        error=error,
        may_have_been_appended=uncertain,
    )
    assert from_line(to_line(operation)) == operation


@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_read_or_refused(line: bytes) -> None:
    with pytest.raises(NotAnOperation):
        from_line(line)
