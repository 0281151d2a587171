"""How proposals of in-sync sets travel: many in one request, each open until it is definitely answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fencepost_node.replication import isr_proposals as proposals_module
from fencepost_node.replication.isr_proposals import MAX_PROPOSALS, IsrProposals
from fencepost_node.replication.leader_state import LeaderState
from fencepost_node.replication.leadership import Leadership
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import BrokerRegistration, MetadataImage, Partition
from fencepost_proto.protocol.v1 import common_pb2
from fencepost_proto.protocol.v1 import controller_pb2 as pb
from fencepost_proto.runtime.tasks import Tasks
from fencepost_testing.waiting import until

BROKERS = {b: BrokerRegistration(b, f"h:{b}", 10 + b, f"i{b}", fenced=False) for b in (1, 2, 3)}


class ScriptedController:
    """Answers with what `answer` makes of a proposal; `fails` is raised instead, by as many calls as it has entries."""

    def __init__(self) -> None:
        self.requests: list[pb.AlterPartitionRequest] = []
        self.fails: list[errors.FencepostError] = []
        self.answer: Callable[[pb.IsrProposal], ErrorCode] = lambda proposal: ErrorCode.NONE
        self.gate = asyncio.Event()
        self.gate.set()

    async def alter_partition(self, request: pb.AlterPartitionRequest) -> pb.AlterPartitionResponse:
        self.requests.append(pb.AlterPartitionRequest.FromString(request.SerializeToString()))
        await self.gate.wait()
        if self.fails:
            raise self.fails.pop(0)
        results = [common_pb2.Error(code=self.answer(proposal)) for proposal in request.proposals]
        return pb.AlterPartitionResponse(results=results)

    @property
    def asked(self) -> list[list[int]]:
        """The partitions of each request."""
        return [[proposal.partition for proposal in request.proposals] for request in self.requests]


class Story:
    """Broker 1 leads partitions with 2 in sync; 3 has caught up and may join."""

    def __init__(self, count: int) -> None:
        self.controller = ScriptedController()
        self.failures: list[BaseException] = []
        self.tasks = Tasks(self.failures.append)
        self.leaderships = [self.leads(index) for index in range(count)]
        self.owner = SimpleNamespace(
            image=MetadataImage(version=1, brokers=BROKERS), broker_id=1, broker_epoch=11, leaderships=self.leaderships
        )
        self.proposals = IsrProposals(cast(Any, self.owner), self.controller, self.tasks, 5_000)

    def leads(self, index: int) -> Leadership:
        partition = Partition("T", index, (1, 2, 3), (1, 2), 1, 4, 7)
        state = LeaderState(1, partition, 0, 0, 0.0)
        for follower in (2, 3):
            state.follower_joined(follower, 10 + follower, 0, 0.0)
        topic = SimpleNamespace(name="topic")
        leadership = SimpleNamespace(
            state=state, epoch=4, subscribers=frozenset((2, 3)), topic=topic, key=partition.id, is_over=False
        )
        leadership.proposal_refused = state.proposal_refused
        return cast(Leadership, leadership)

    def propose_all(self) -> None:
        for leadership in self.leaderships:
            self.proposals.propose(leadership)

    @property
    def open(self) -> list[int]:
        return [one.state.partition.index for one in self.leaderships if one.state.proposal is not None]

    async def until(self, condition: Callable[[], object], what: str) -> None:
        def holds() -> object:
            assert not self.failures, self.failures
            return condition()

        await until(holds, what)


def with_story(count: int, test: Callable[[Story], Awaitable[None]]) -> None:
    async def run() -> None:
        story = Story(count)
        try:
            await test(story)
        finally:
            await story.tasks.close()
        assert not story.failures

    asyncio.run(run())


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals_module, "RETRY", replace(proposals_module.RETRY, first_s=0.001))


def test_what_waits_at_one_time_goes_in_one_request_and_the_rest_in_the_next() -> None:
    async def test(story: Story) -> None:
        story.controller.gate.clear()
        story.proposals.propose(story.leaderships[0])
        await story.until(lambda: story.controller.requests, "the first request")
        story.propose_all()
        await asyncio.sleep(0.01)
        assert story.controller.asked == [[0]], "one request at a time"
        story.controller.gate.set()
        await story.until(lambda: len(story.controller.requests) == 4, "all requests")
        assert [len(asked) for asked in story.controller.asked] == [1, MAX_PROPOSALS, MAX_PROPOSALS, 99]
        assert sorted(n for asked in story.controller.asked for n in asked) == list(range(2 * MAX_PROPOSALS + 100))
        member = story.controller.requests[1].proposals[0].new_isr[2]
        assert (member.broker_id, member.broker_epoch) == (3, 13)

    with_story(2 * MAX_PROPOSALS + 100, test)


@pytest.mark.parametrize(
    "error",
    [
        errors.UnknownServerError("controller: Stream removed (UNKNOWN)"),  # how gRPC reports some broken connections
        errors.NotController("controller: unavailable"),
        errors.RequestTimedOut("controller: deadline exceeded"),
        errors.InvalidRequest("what an answer would call definite"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_call_that_broke_off_leaves_the_proposal_open_and_it_is_sent_again(error: errors.FencepostError) -> None:
    async def test(story: Story) -> None:
        story.controller.fails = [error, error, error]
        story.propose_all()
        await story.until(lambda: len(story.controller.requests) >= 2, "another attempt")
        assert story.open == [0, 1], "it may have been carried out"
        assert story.leaderships[0].state.maximal_isr == (1, 2, 3)
        await story.until(lambda: len(story.controller.requests) == 4, "the attempt that is answered")
        assert story.controller.asked == [[0, 1]] * 4
        assert story.open == [0, 1], "until metadata closes it"

    with_story(2, test)


def test_a_definite_refusal_of_the_controller_closes_that_proposal_alone() -> None:
    async def test(story: Story) -> None:
        codes = {1: ErrorCode.INELIGIBLE_REPLICA, 2: ErrorCode.INVALID_UPDATE_VERSION}
        story.controller.answer = lambda proposal: codes.get(proposal.partition, ErrorCode.NONE)
        story.propose_all()
        await story.until(lambda: story.open == [0, 2, 3], "the refusal taken")
        assert story.controller.asked == [[0, 1, 2, 3]], "nothing of it is sent again"

    with_story(4, test)


def test_an_unforeseen_error_for_one_proposal_leaves_it_open_and_it_alone_is_sent_again() -> None:
    async def test(story: Story) -> None:
        answers = {1: [ErrorCode.UNKNOWN_SERVER_ERROR, ErrorCode.KAFKA_STORAGE_ERROR]}

        def answer(proposal: pb.IsrProposal) -> ErrorCode:
            left = answers.get(proposal.partition)
            return left.pop(0) if left else ErrorCode.NONE

        story.controller.answer = answer
        story.propose_all()
        await story.until(lambda: len(story.controller.requests) == 3, "two more attempts")
        assert story.controller.asked == [[0, 1, 2], [1], [1]]
        assert story.open == [0, 1, 2]

    with_story(3, test)


def test_what_metadata_has_closed_meanwhile_is_not_sent_again() -> None:
    async def test(story: Story) -> None:
        story.controller.fails = [errors.NotController("away")]
        story.controller.gate.clear()
        story.propose_all()
        await story.until(lambda: story.controller.requests, "the first attempt")
        state = story.leaderships[0].state
        state.partition_changed(replace(state.partition, isr=(1, 2, 3), partition_epoch=8), 1.0)
        story.controller.gate.set()
        await story.until(lambda: len(story.controller.requests) == 2, "another attempt")
        assert story.controller.asked == [[0, 1], [1]]

    with_story(2, test)


def test_a_partition_at_rest_has_nothing_to_propose() -> None:
    partition = Partition("T", 0, (1, 2), (1, 2), 1, 4, 7)
    state = LeaderState(1, partition, 10, 10, 0.0)
    assert not state.at_rest, "broker 2 has not told where its log ends"
    state.follower_joined(2, 12, 10, 0.0)
    assert state.at_rest
    state.appended(11, 11, 1.0)
    assert not state.at_rest, "broker 2 may begin to lag"
    state.follower_acked(2, 11, 2.0)
    assert state.at_rest
    state.partition_changed(replace(partition, isr=(1,), partition_epoch=8), 3.0)
    assert not state.at_rest, "broker 2 is to join again"


def test_a_broker_that_is_live_now_joins_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals_module, "ISR_CHECK_INTERVAL_S", 60.0)

    async def test(story: Story) -> None:
        fenced = {**BROKERS, 3: replace(BROKERS[3], fenced=True)}
        story.owner.image = MetadataImage(version=1, brokers=fenced)
        story.proposals.start()
        story.propose_all()
        await asyncio.sleep(0)
        assert story.open == []
        story.owner.image = MetadataImage(version=2, brokers=BROKERS)
        story.proposals.brokers_changed()
        await story.until(lambda: story.open == [0, 1], "both proposed")

    with_story(2, test)


def test_what_is_at_rest_is_not_looked_at_until_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals_module, "ISR_CHECK_INTERVAL_S", 0.001)

    async def test(story: Story) -> None:
        first, second = story.leaderships
        for one in story.leaderships:
            one.state.partition_changed(replace(one.state.partition, isr=(1, 2, 3), partition_epoch=8), 0.0)
        story.proposals._lag_max_s = 0.0
        story.proposals.start()
        story.propose_all()
        await story.until(lambda: not story.proposals._watched, "at rest")
        first.state.appended(1, 1, 0.0)
        first.on_append(first)
        await story.until(lambda: story.open == [0], "its followers lag")
        assert second.key not in story.proposals._watched

    with_story(2, test)
