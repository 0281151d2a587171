"""The history that clients write: each line as documented, each key and value as it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencepost.consumer_core import ConsumerRecord
from fencepost.history import History, bytes_of
from fencepost_proto.errors import InvalidRecord, NetworkException


def lines_of(tell: Callable[[History], None]) -> list[dict[str, object]]:
    """What `tell` makes a history write, without the times."""
    lines: list[str] = []

    async def telling() -> None:
        tell(History(lines.append, process="p"))

    asyncio.run(telling())
    told = [json.loads(line) for line in lines]
    for line in told:
        assert line.pop("process") == "p"
        assert isinstance(line.pop("time"), int)
    return told


def test_a_send_is_told_when_invoked_and_when_completed() -> None:
    def tell(history: History) -> None:
        first = history.invoke_send("orders", None, b"k", b"v")
        second = history.invoke_send("orders", 2, None, None)
        history.complete_send(second, "orders", 2, -1)
        history.complete_send(first, "orders", 0, 17)

    assert lines_of(tell) == [
        {"type": "invoke", "op": "send", "id": 1, "topic": "orders", "key": "k", "value": "v"},
        {"type": "invoke", "op": "send", "id": 2, "topic": "orders", "partition": 2, "key": None, "value": None},
        {"type": "ok", "op": "send", "id": 2, "topic": "orders", "partition": 2},
        {"type": "ok", "op": "send", "id": 1, "topic": "orders", "partition": 0, "offset": 17},
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
        history.complete_send(history.invoke_send("t", 0, None, b""), "t", 0, -1, error)

    completion = lines_of(tell)[1]
    assert completion["type"] == kind
    assert type(error).__name__ in str(completion["error"])


@given(st.none() | st.binary() | st.text().map(str.encode))
def test_keys_and_values_come_back_as_they_were(value: bytes | None) -> None:
    def tell(history: History) -> None:
        history.polled(history.invoke_poll(), ConsumerRecord("t", 1, 5, 1000, value, value, []), 9)

    invoked, polled = lines_of(tell)
    assert invoked == {"type": "invoke", "op": "poll", "id": 1}
    assert bytes_of(polled.pop("key")) == bytes_of(polled.pop("value")) == value
    assert polled == {
        "type": "ok",
        "op": "poll",
        "id": 1,
        "topic": "t",
        "partition": 1,
        "offset": 5,
        "high_watermark": 9,
    }


@pytest.mark.parametrize("field", [5, {"base64": 5}, {"base64": "§"}, {"other": ""}, []])
def test_a_field_that_none_wrote_is_refused(field: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        bytes_of(field)


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
    told = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["process"], line["type"]) for line in told] == [
        (process, kind) for process in "ab" for _ in range(1000) for kind in ("invoke", "ok")
    ]
