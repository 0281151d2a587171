"""Polls LeaderState every 250 ms (lag produces no event) and retries AlterPartition until the answer is definite.

LeaderState is also asked when a follower has acknowledged more. All proposals of a broker that wait at one time go in one
request, one request at a time: while it is under way the next ones gather.

A proposal stays open until metadata or a definite refusal closes it. As long as it is open its members count for the high
watermark, since the controller may have put them in sync. So it is closed only by

- metadata with a later partition epoch (`LeaderState.partition_changed`), or the end of the leadership;
- a refusal *by the controller*, in its answer, that says that nothing was changed and never will be (`_REFUSED`).

Everything else leaves the outcome open, whatever its code: a call that broke off may have been carried out before, and an
error that was not foreseen says nothing. Then the same proposal is sent again, with a growing pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fencepost_node.replication.leader_state import Proposal
from fencepost_node.replication.leadership import Leadership
from fencepost_node.replication.local_broker import LocalBroker
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import ErrorCode, FencepostError
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.v1 import controller_pb2
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.runtime.tasks import Tasks
from fencepost_proto.runtime.turns import Turns

log = logging.getLogger(__name__)

ISR_CHECK_INTERVAL_S = 0.25  # how often lag is looked at; joining needs no check, it follows an acknowledgement
CHECK_SHARE = 10  # … for at most one part in so many of the time …
MAX_CHECK_INTERVAL_S = 1.0  # … but that often
MAX_PROPOSALS = 500  # in one request (the controller takes 1,000)
RETRY = Backoff(first_s=0.1, most_s=2.0)  # pauses after attempts whose outcome is open

# Definite: the proposal is not carried out, and the metadata that it was based on still stands.
_REFUSED = frozenset((ErrorCode.INELIGIBLE_REPLICA, ErrorCode.INVALID_REQUEST))

# The controller has moved on from what the proposal was based on: the session brings what closes it.
_OVERTAKEN = frozenset(
    (
        ErrorCode.INVALID_UPDATE_VERSION,
        ErrorCode.FENCED_LEADER_EPOCH,
        ErrorCode.NOT_LEADER_OR_FOLLOWER,
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.UNKNOWN_TOPIC_ID,
    )
)


class AlterPartitionClient(Protocol):
    """What is asked of the controller."""

    async def alter_partition(
        self, request: controller_pb2.AlterPartitionRequest
    ) -> controller_pb2.AlterPartitionResponse: ...


class _Open(NamedTuple):
    """A proposal that the controller has not definitely answered."""

    leadership: Leadership
    proposal: Proposal
    attempts: int

    def is_open(self) -> bool:
        return not self.leadership.is_over and self.leadership.state.proposal is self.proposal


class IsrProposals:
    """Of all partitions that this broker leads. `tasks` owns what it starts."""

    def __init__(self, local: LocalBroker, controller: AlterPartitionClient, tasks: Tasks, lag_max_ms: int) -> None:
        self._local = local
        self._controller = controller
        self._tasks = tasks
        self._lag_max_s = lag_max_ms / 1000
        self._watched: dict[PartitionKey, Leadership] = {}  # not known to be at rest
        self._look_now = asyncio.Event()
        self._waiting: list[_Open] = []  # at most one for each leadership that has an open proposal
        self._sending = False
        self._failures = 0  # requests, one after the other, that brought no answer
        self._eligible: tuple[int, frozenset[int]] = (-1, frozenset())  # of one metadata version

    def start(self) -> None:
        self._tasks.spawn(self._check(), "isr")

    def watch(self, leadership: Leadership) -> None:
        """Look at it from time to time until it is at rest, or over: a follower that lags may send nothing."""
        self._watched[leadership.key] = leadership

    def brokers_changed(self) -> None:
        """Others may join now than before."""
        self._look_now.set()

    def propose(self, leadership: Leadership) -> None:
        """See whether the in-sync set should change, and ask the controller if so."""
        leadership.on_append = self.watch
        self.watch(leadership)
        if self._local.broker_epoch < 0 or leadership.state.proposal is not None:
            return
        partition = leadership.state.partition
        all_in_sync = len(partition.isr) == len(partition.replicas)  # then no one can join
        eligible = frozenset() if all_in_sync else leadership.subscribers & self._eligible_brokers()
        proposal = leadership.state.propose(eligible, self._lag_max_s, asyncio.get_running_loop().time())
        if proposal is not None:
            log.info(
                "proposing isr topic=%s partition=%d epoch=%d isr=%s was=%s",
                leadership.topic.name, leadership.key[1], leadership.epoch, proposal.isr,
                leadership.state.partition.isr,
            )  # fmt: skip
            self._send_soon([_Open(leadership, proposal, 0)])

    def _eligible_brokers(self) -> frozenset[int]:
        """Those that the controller would accept, as far as this broker knows."""
        image = self._local.image
        if self._eligible[0] != image.version:
            brokers = (b.id for b in image.brokers.values() if not b.fenced and not b.shutting_down)
            self._eligible = (image.version, frozenset(brokers))
        return self._eligible[1]

    async def _check(self) -> None:
        turns, loop = Turns(), asyncio.get_running_loop()
        pause_s = ISR_CHECK_INTERVAL_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._look_now.wait()
            self._look_now.clear()
            began = loop.time()
            for key, leadership in list(self._watched.items()):
                if leadership.is_over or leadership.state.at_rest:
                    if self._watched.get(key) is leadership:
                        del self._watched[key]
                elif leadership.state.proposal is None:
                    self.propose(leadership)
                await turns.step()
            pause_s = min(max(ISR_CHECK_INTERVAL_S, CHECK_SHARE * (loop.time() - began)), MAX_CHECK_INTERVAL_S)

    # ---- Sending ----

    def _send_soon(self, proposals: Sequence[_Open]) -> None:
        self._waiting.extend(proposals)
        if not self._sending:
            self._sending = True
            self._tasks.spawn(self._send(), "alter-partition")

    async def _send(self) -> None:
        """One request after the other until nothing waits."""
        try:
            while self._waiting:
                taken, self._waiting = self._waiting[:MAX_PROPOSALS], self._waiting[MAX_PROPOSALS:]
                if asked := [one for one in taken if one.is_open()]:
                    await self._ask(asked)
        finally:
            self._sending = False

    async def _ask(self, asked: Sequence[_Open]) -> None:
        try:
            answer = await self._controller.alter_partition(self._request(asked))
            errors.raise_for(answer.error)
            if len(answer.results) != len(asked):
                raise errors.UnknownServerError(f"{len(answer.results)} results for {len(asked)} proposals")
        except FencepostError as error:
            log.info("isr proposals without an answer count=%d error=%s", len(asked), error)
            self._waiting[:0] = asked
            self._failures += 1
            await asyncio.sleep(RETRY.pause_s(self._failures))
            return
        self._failures = 0
        again: list[_Open] = []
        for one, result in zip(asked, answer.results, strict=True):
            if result.code in _REFUSED:
                log.warning("isr refused topic=%s partition=%d error=%s",
                            one.leadership.topic.name, one.leadership.key[1], result.message)  # fmt: skip
                if one.is_open():
                    one.leadership.proposal_refused(one.proposal)
            elif result.code != ErrorCode.NONE and result.code not in _OVERTAKEN:
                again.append(one._replace(attempts=one.attempts + 1))
        if again:
            self._tasks.spawn(self._send_again(again), "alter-partition-again")

    async def _send_again(self, again: Sequence[_Open]) -> None:
        await asyncio.sleep(RETRY.pause_s(max(one.attempts for one in again)))
        self._send_soon(again)

    def _request(self, asked: Sequence[_Open]) -> controller_pb2.AlterPartitionRequest:
        request = controller_pb2.AlterPartitionRequest(
            broker_id=self._local.broker_id, broker_epoch=self._local.broker_epoch
        )
        brokers = self._local.image.brokers
        for one in asked:
            partition = one.leadership.state.partition
            added = request.proposals.add(
                topic_id=partition.topic_id,
                partition=partition.index,
                leader_epoch=one.leadership.epoch,
                partition_epoch=one.proposal.partition_epoch,
            )
            for member in one.proposal.isr:
                known = brokers[member].broker_epoch if member in brokers else -1
                joins = member not in partition.isr
                added.new_isr.add(
                    broker_id=member, broker_epoch=one.leadership.state.broker_epoch_of(member) if joins else known
                )
        return request
