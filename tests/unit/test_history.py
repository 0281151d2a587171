"""The history that clients write: each line as documented, each key and value as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencepost.consuming.partition import ConsumerRecord
from fencepost.history import History
from fencepost.history_format import Operation, RecordStamp, from_line
from fencepost_proto.protocol.errors import InvalidRecord, NetworkException


def told_by(tell: Callable[[History], object]) -> list[Operation]:
    """What `tell` makes a history write, read back; the times, which must not go back, as 0."""
    lines: list[str] = []

    async def telling() -> None:
        tell(History(lines.append, process="p"))

    asyncio.run(telling())
    operations = [from_line(line) for line in lines]
    assert {operation.process for operation in operations} == {"p"}
    times = [operation.time_ns for operation in operations]
    assert times == sorted(times)
    return [operation._replace(time_ns=0) for operation in operations]


def test_a_send_is_recorded_when_invoked_and_when_completed() -> None:
    stamp = RecordStamp(7, 0, 3)

    def tell(history: History) -> None:
        first = history.invoke_send("orders", None, b"k", b"v")
        second = history.invoke_send("orders", 2, None, b"w")
        history.complete_send(second, "orders", 2, -1)
        history.complete_send(first, "orders", 0, 17, producer=stamp)

    assert told_by(tell) == [
        Operation("p", 0, "invoke", "send", 1, "orders", key="k", value="v"),
        Operation("p", 0, "invoke", "send", 2, "orders", 2, value="w"),
        Operation("p", 0, "ok", "send", 2, "orders", 2),
        Operation("p", 0, "ok", "send", 1, "orders", 0, offset=17, producer=stamp),
    ]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRecord("negative"), "fail"),
        (NetworkException("gone"), "info"),
        (asyncio.CancelledError(), "info"),  # nothing is known: it may have been sent
    ],
)
def test_a_failed_send_says_whether_it_certainly_did_not_happen(error: BaseException, kind: str) -> None:
    def tell(history: History) -> None:
        history.complete_send(history.invoke_send("t", 0, None, b""), "t", 0, -1, error=error)

    completion = told_by(tell)[1]
    assert completion.type == kind
    assert completion.may_have_been_appended == (kind == "info")
    assert type(error).__name__ in str(completion.error)


@given(st.none() | st.binary() | st.text().map(str.encode))
def test_keys_and_values_come_back_as_they_were(value: bytes | None) -> None:
    def tell(history: History) -> None:
        history.polled(history.invoke_poll(), ConsumerRecord("t", 1, 5, 1000, value, value, []), 9)

    invoked, polled = told_by(tell)
    assert invoked == Operation("p", 0, "invoke", "poll", 1)
    assert polled._replace(key=None, value=None, records=()) == Operation(
        "p", 0, "ok", "poll", 1, "t", 1, offset=5, high_watermark=9
    )
    for field in (polled.key, polled.value, polled.records[0][1]):
        assert (field.encode() if isinstance(field, str) else field) == value


def test_empty_polls_failed_polls_moves_and_the_last_reading_are_recorded() -> None:
    def tell(history: History) -> None:
        history.polled_nothing(history.invoke_poll())
        history.polled_nothing(history.invoke_poll(), InvalidRecord("bad"))
        history.moved("t", 1, 40)
        history.complete_final(history.invoke_final("t", 1), "t", 1, 10, 50)

    assert told_by(tell) == [
        Operation("p", 0, "invoke", "poll", 1),
        Operation("p", 0, "ok", "poll", 1),
        Operation("p", 0, "invoke", "poll", 2),
        Operation("p", 0, "fail", "poll", 2, error="InvalidRecord: INVALID_RECORD: bad"),
        Operation("p", 0, "info", "seek", 3, "t", 1, offset=40),
        Operation("p", 0, "invoke", "final", 4, "t", 1),
        Operation("p", 0, "ok", "final", 4, "t", 1, start_offset=10, end_offset=50),
    ]


def test_an_unclean_election_is_recorded_with_what_it_takes() -> None:
    def tell(history: History) -> None:
        history.complete_election(history.invoke_election("t", 1, 10, 12), "t", 1)
        history.complete_election(history.invoke_election("t", 1, 10, 12), "t", 1, InvalidRecord("bad"))

    assert told_by(tell) == [
        Operation("p", 0, "invoke", "elect", 1, "t", 1, start_offset=10, end_offset=12),
        Operation("p", 0, "ok", "elect", 1, "t", 1),
        Operation("p", 0, "invoke", "elect", 2, "t", 1, start_offset=10, end_offset=12),
        Operation("p", 0, "info", "elect", 2, "t", 1, error="InvalidRecord: INVALID_RECORD: bad"),
    ]


def test_a_file_is_appended_to_and_whole_after_close(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"

    async def telling(process: str) -> None:
        history = History(path, process=process)
        for _ in range(1000):
            history.complete_send(history.invoke_send("t", 0, None, "ü".encode()), "t", 0, 1)
        history.close()
        history.close()

    for process in ("a", "b"):
        asyncio.run(telling(process))
    told = [from_line(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line.process, line.type) for line in told] == [
        (process, kind) for process in "ab" for _ in range(1000) for kind in ("invoke", "ok")
    ]
