"""What a broker keeps of a batch that it has refused: enough to answer those behind it, and not its records."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fencepost_node.log.errors import CorruptLog
from fencepost_node.producers.refusals import Refusals
from fencepost_node.replication.leadership import ALL_ACKS
from fencepost_node.requests.append import append_batch
from fencepost_proto.protocol.errors import FencepostError, NotLeaderOrFollower, OutOfOrderSequenceNumber
from tests.asynchronous import asynchronous
from tests.unit.batches import batch


class RefusingManager:
    """Of a broker that refuses whatever comes."""

    def __init__(self) -> None:
        self.error: Callable[[str], FencepostError] = NotLeaderOrFollower
        self.local = SimpleNamespace(
            counts=SimpleNamespace(refused_batches=Counter[str]()), loop=asyncio.get_running_loop()
        )
        self.image = SimpleNamespace(topics={}, partitions={})

    def leader(self, *_: object) -> None:
        raise self.error("as the test says")


@pytest.fixture(autouse=True)
def no_collections() -> Iterator[None]:
    """A broker collects seldom."""
    gc.disable()
    yield
    gc.enable()


def refused(manager: RefusingManager, refusals: Refusals, records: bytes) -> FencepostError:
    """The error, as the caller of `append_batch` gets it."""
    arguments: dict[str, Any] = {"acks": ALL_ACKS, "timeout_ms": 1_000, "admit": None, "report": None}
    try:
        append_batch(manager, refusals, "t", 0, records, **arguments)  # type: ignore[arg-type]
    except FencepostError as error:
        return error
    raise AssertionError("not refused")


@asynchronous
async def test_nothing_holds_the_records_of_a_refused_batch() -> None:
    manager, refusals = RefusingManager(), Refusals()
    first, second = (batch(1, producer_id=1, epoch=0, sequence=sequence) for sequence in (0, 1))
    held = [sys.getrefcount(records) for records in (first, second)]
    for _ in range(3):
        assert type(refused(manager, refusals, first)) is NotLeaderOrFollower
    manager.error = OutOfOrderSequenceNumber
    told = refused(manager, refusals, second)
    assert type(told) is NotLeaderOrFollower, "what is behind a refused batch is told the same"
    assert type(told.__cause__) is OutOfOrderSequenceNumber
    assert manager.local.counts.refused_batches == {"NOT_LEADER_OR_FOLLOWER": 4}
    assert len(refusals) == 1
    del told  # the caller has it no more
    assert [sys.getrefcount(records) for records in (first, second)] == held


@asynchronous
async def test_an_error_of_more_than_a_message_is_remembered_whole() -> None:
    manager, refusals = RefusingManager(), Refusals()
    manager.error = lambda message: CorruptLog("0.log", 7, 3, message)
    refused(manager, refusals, batch(1, producer_id=1, epoch=0, sequence=0))
    manager.error = OutOfOrderSequenceNumber
    told = refused(manager, refusals, batch(1, producer_id=1, epoch=0, sequence=1))
    assert isinstance(told, CorruptLog)
    assert (told.position, told.message) == (7, "0.log is damaged at byte 7, offset 3: as the test says")
