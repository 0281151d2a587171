"""A consumer whose leader was elected uncleanly: it does not go on as if what it has read were still there."""

from __future__ import annotations

import asyncio

import pytest

from fencepost.consuming.consumer_core import Asked, ConsumerCore, FetchRoute, Parted, ResetPolicy
from fencepost.consuming.partition import TopicPartition
from fencepost_node.replication.leadership import Diverged
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import OffsetOutOfRange
from fencepost_proto.protocol.v1 import broker_pb2
from tests.unit.batches import batch
from tests.unit.replicas import leading, open_replica

TP = TopicPartition("orders", 0)
KEY = ("T", 0)


class Reader:
    """A core that is answered by hand, under one route."""

    def __init__(self, reset: ResetPolicy = "earliest", position: int = 0) -> None:
        self.core = ConsumerCore(reset)
        self.core.assign({TP: KEY}, {TP: position})

    def asks(self) -> broker_pb2.FetchPartition:
        self.route = FetchRoute(KEY, 0, self.core._assigned[TP].generation)
        self.ask = self.core.ask([self.route], 100.0)
        (asked,) = self.ask.partitions
        return asked

    def answered(self, **fields: object) -> None:
        answer = broker_pb2.FetchedPartition(topic_id="T", partition=0, high_watermark=100, **fields)  # type: ignore[arg-type]
        asked: dict[tuple[str, int], Asked] = self.ask.asked
        self.core.accept_answer(asked, answer, 100.0)

    def diverged(self, epoch: int, end_offset: int) -> None:
        self.answered(
            error=errors.to_proto(OffsetOutOfRange("gone")),
            divergence=broker_pb2.FetchDivergence(epoch=epoch, end_offset=end_offset),
        )

    def fetches(self, *epochs: int) -> None:
        """One record of each epoch, from the position on."""
        start = self.asks().fetch_offset
        self.answered(records=b"".join(batch(1, base_offset=start + n, leader_epoch=e) for n, e in enumerate(epochs)))

    def reads(self) -> list[int]:
        return [record.offset for record in self.core.hand_out(100)]


def test_a_fetch_says_under_which_epoch_the_batch_before_it_was_written() -> None:
    reader = Reader()
    assert not reader.asks().HasField("last_epoch")
    reader.fetches(1, 1, 3)
    assert (reader.asks().fetch_offset, reader.asks().last_epoch) == (3, 3)
    reader.core.seek(TP, 2)
    assert (reader.asks().fetch_offset, reader.asks().last_epoch) == (2, 1)
    reader.core.seek(TP, 50)
    assert not reader.asks().HasField("last_epoch"), "nothing was read there"


@pytest.mark.parametrize("reset", ["earliest", "latest"])
def test_what_was_handed_out_and_is_gone_takes_reading_back_to_where_the_logs_part(reset: ResetPolicy) -> None:
    reader = Reader(reset)
    reader.fetches(1, 1, 3, 3)
    assert reader.reads() == [0, 1, 2, 3]
    assert reader.asks().last_epoch == 3
    reader.diverged(epoch=2, end_offset=3)
    assert list(reader.core.parted) == [Parted(TP, 4, 2)]
    assert (reader.asks().fetch_offset, reader.asks().last_epoch) == (2, 1)
    reader.fetches(2, 2)
    assert reader.reads() == [2, 3]


def test_under_the_policy_error_the_application_gets_the_error() -> None:
    reader = Reader("error")
    reader.fetches(1, 3, 3)
    assert reader.reads() == [0, 1, 2]
    reader.asks()
    reader.diverged(epoch=1, end_offset=1)
    (failure,) = reader.core.failures()
    assert isinstance(failure, OffsetOutOfRange)
    assert "from offset 1 to 3" in failure.message
    reader.core.seek(TP, 1)
    assert reader.asks().fetch_offset == 1


@pytest.mark.parametrize("reset", ["earliest", "error"])
def test_what_is_only_buffered_is_fetched_again_under_every_policy(reset: ResetPolicy) -> None:
    reader = Reader(reset)
    reader.fetches(1, 3, 3)
    reader.asks()
    reader.diverged(epoch=1, end_offset=1)
    assert reader.core.failures() == []
    assert not reader.core.parted
    assert reader.asks().fetch_offset == 0


def test_where_nothing_that_was_read_is_left_reading_begins_where_it_began_or_where_the_log_ends() -> None:
    for start, end_offset, position in ((5, 9, 5), (5, 3, 3)):
        reader = Reader(position=start)
        reader.fetches(4, 4)
        assert reader.reads() == [5, 6]
        reader.asks()
        reader.diverged(epoch=2, end_offset=end_offset)
        asked = reader.asks()
        assert (asked.fetch_offset, asked.HasField("last_epoch")) == (position, False)


def test_a_divergence_that_explains_nothing_is_an_error_and_no_endless_exchange() -> None:
    reader = Reader()
    reader.fetches(4, 4)
    assert reader.reads() == [0, 1]
    reader.asks()
    reader.diverged(epoch=4, end_offset=9)
    assert isinstance(reader.core.failures()[0], OffsetOutOfRange)


def test_a_leader_refuses_a_reader_of_another_history_and_no_one_else() -> None:
    async def deposed() -> None:
        leadership = leading(open_replica(leader=1, epoch=3))
        leadership.end(errors.NotLeaderOrFollower("over"), errors.RequestTimedOut("over"))
        with pytest.raises(errors.NotLeaderOrFollower):
            leadership.check_continues(2, 1)

    async def as_leader() -> None:
        leadership = leading(open_replica(leader=1, epoch=3))
        for _ in range(4):
            leadership.append_batch(batch(1), 1, 0.0)
        for offset in range(1, 5):
            leadership.check_continues(offset, 3)
        with pytest.raises(Diverged) as found:
            leadership.check_continues(6, 3)
        assert (found.value.parted.epoch, found.value.parted.end_offset) == (3, 4)
        with pytest.raises(Diverged) as found:
            leadership.check_continues(2, 7)
        assert (found.value.parted.epoch, found.value.parted.end_offset) == (3, 4)
        with pytest.raises(Diverged) as found:
            leadership.check_continues(2, 1)
        assert (found.value.parted.epoch, found.value.parted.end_offset) == (-1, 0)

    asyncio.run(deposed())
    asyncio.run(as_leader())
