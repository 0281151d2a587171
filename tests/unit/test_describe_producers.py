"""What DescribeProducers tells of the state."""

from __future__ import annotations

import asyncio

import pytest

from fencepost.descriptions import PartitionProducers
from fencepost_node.client_limits import AnswerBudget
from fencepost_node.grpc import describe_producers
from fencepost_node.grpc.describe_producers import ALL, describe
from fencepost_node.producers.producer_state import ProducerEntry
from fencepost_proto.protocol.v1.broker_pb2 import BatchState, DescribeProducersResponse, ProducerStateInfo
from fencepost_proto.runtime.tasks import Tasks
from fencepost_proto.runtime.turns import STEPS_PER_TURN
from tests.unit.batches import batch, header
from tests.unit.replicas import leading, open_replica
from tests.unit.test_producer_state import after


def test_describe_lists_producers_by_id_with_their_batches() -> None:
    state = after((0, 3), (3, 1), epoch=4)
    state.record(header(producer_id=0), 200)
    first, second = describe(state, ALL)
    assert (first.producer_id, second.producer_id, second.producer_epoch) == (0, 1, 4)
    assert [(b.first_sequence, b.last_sequence, b.base_offset) for b in second.batches] == [(0, 2, 100), (3, 3, 103)]
    assert describe(state, 1) == [second]
    assert describe(state, 2) == []


def test_a_client_takes_a_long_list_in_turns() -> None:
    """A partition may have 50,000 producers: at once, that would hold the application's loop for most of a second."""
    count = 1_000
    entry = ProducerStateInfo(producer_epoch=4, batches=[BatchState(first_sequence=0, last_sequence=2, base_offset=7)])
    answer = DescribeProducersResponse(leader_epoch=3)
    for producer_id in reversed(range(count)):
        answer.producers.add(producer_id=producer_id).MergeFrom(entry)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def story() -> PartitionProducers:
        going_on = asyncio.create_task(others())
        try:
            return await PartitionProducers.of("orders", 0, answer)
        finally:
            going_on.cancel()

    described = asyncio.run(story())
    assert [producer.producer_id for producer in described.producers] == list(range(count))
    assert described.producers[-1].batches[0].last_sequence == 2
    assert turns >= count // STEPS_PER_TURN


def test_a_broker_makes_a_long_list_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks something else meanwhile waits for a few producers' descriptions, not for all."""
    monkeypatch.setattr(describe_producers, "PRODUCERS_IN_A_TURN", 5)
    described_in_turn: list[int] = []
    describe_one = describe_producers.describe_entry

    def counted(producer_id: int, entry: ProducerEntry) -> ProducerStateInfo:
        described_in_turn[-1] += 1
        return describe_one(producer_id, entry)

    async def others() -> None:
        while True:
            described_in_turn.append(0)
            await asyncio.sleep(0)

    async def story() -> DescribeProducersResponse:
        leadership = leading(open_replica(leader=1))
        for producer_id in range(40):
            leadership.append_batch(batch(1, producer_id=producer_id, epoch=0, sequence=0), 1, 0.0)
        tasks = Tasks(lambda error: pytest.fail(str(error)))
        lists = describe_producers.ProducerLists(tasks, AnswerBudget(1 << 20, lambda peer, reason: False))
        going_on = asyncio.create_task(others())
        await asyncio.sleep(0)
        try:
            return DescribeProducersResponse.FromString(await lists.of(leadership))
        finally:
            going_on.cancel()
            await tasks.close()

    monkeypatch.setattr(describe_producers, "describe_entry", counted)
    answer = asyncio.run(story())
    assert [producer.producer_id for producer in answer.producers] == list(range(40))
    assert sum(described_in_turn) == 40
    assert max(described_in_turn) == 5
