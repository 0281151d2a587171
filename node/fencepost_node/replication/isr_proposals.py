"""A leader's proposals to change its in-sync set, on their way to the controller, who decides.

`leader_state` says when there is something to propose; here it is asked, looked after in time (a follower that lags does
nothing that would be noticed), and the controller is asked until it has definitely answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from fencepost_node.replication.leader_state import Proposal
from fencepost_node.replication.leadership import Leadership
from fencepost_proto import errors
from fencepost_proto.errors import ErrorCode, FencepostError
from fencepost_proto.metadata import MetadataImage
from fencepost_proto.tasks import Tasks
from fencepost_proto.v1 import controller_pb2

log = logging.getLogger(__name__)

ISR_CHECK_INTERVAL_S = 0.25  # how often lag is looked at; joining needs no check, it follows an acknowledgement
ALTER_PARTITION_RETRY_S = 0.1

# The controller has already moved on from what the proposal was based on.
_OVERTAKEN = frozenset(
    (
        ErrorCode.INVALID_UPDATE_VERSION,
        ErrorCode.NEW_LEADER_ELECTED,
        ErrorCode.FENCED_LEADER_EPOCH,
        ErrorCode.NOT_LEADER_OR_FOLLOWER,
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.UNKNOWN_TOPIC_ID,
    )
)


class Controller(Protocol):
    """What is asked of the controller."""

    async def alter_partition(
        self, request: controller_pb2.AlterPartitionRequest
    ) -> controller_pb2.AlterPartitionResponse: ...


class ProposalsOwner(Protocol):
    """What is asked of the replica manager."""

    @property
    def image(self) -> MetadataImage: ...

    @property
    def broker_id(self) -> int: ...

    @property
    def broker_epoch(self) -> int:
        """-1: not registered yet."""
        ...

    @property
    def leaderships(self) -> Iterable[Leadership]: ...


class IsrProposals:
    """Of all partitions that this broker leads. `tasks` owns what it starts."""

    def __init__(self, owner: ProposalsOwner, controller: Controller, tasks: Tasks, lag_max_ms: int) -> None:
        self._owner = owner
        self._controller = controller
        self._tasks = tasks
        self._lag_max_s = lag_max_ms / 1000

    def start(self) -> None:
        self._tasks.spawn(self._check(), "isr")

    def propose(self, leadership: Leadership) -> None:
        """See whether the in-sync set should change, and ask the controller if so."""
        if self._owner.broker_epoch < 0:
            return
        brokers = self._owner.image.brokers.values()
        eligible = leadership.subscribers.intersection(b.id for b in brokers if not b.fenced and not b.shutting_down)
        proposal = leadership.state.propose(eligible, self._lag_max_s, asyncio.get_running_loop().time())
        if proposal is not None:
            self._tasks.spawn(self._ask(leadership, proposal), f"alter-partition-{leadership.replica.key}")

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(ISR_CHECK_INTERVAL_S)
            for leadership in self._owner.leaderships:
                self.propose(leadership)

    async def _ask(self, leadership: Leadership, proposal: Proposal) -> None:
        """Until the controller has definitely answered, or the proposal is closed by metadata."""
        replica = leadership.replica
        request = self._request(leadership, proposal)
        log.info(
            "proposing isr topic=%s partition=%d epoch=%d isr=%s was=%s",
            replica.topic.name, replica.key[1], leadership.epoch, proposal.isr, leadership.state.partition.isr,
        )  # fmt: skip
        while replica.role is leadership and leadership.state.proposal is proposal:
            request.broker_epoch = self._owner.broker_epoch
            try:
                errors.raise_for((await self._controller.alter_partition(request)).error)
            except FencepostError as error:
                if error.code in _OVERTAKEN:
                    return  # metadata is on its way that closes the proposal
                if not error.retriable and error.code != ErrorCode.STALE_BROKER_EPOCH:
                    log.warning("isr refused topic=%s partition=%d error=%s", replica.topic.name, replica.key[1], error)
                    leadership.proposal_refused(proposal)
                    return
                await asyncio.sleep(ALTER_PARTITION_RETRY_S)
            else:
                return

    def _request(self, leadership: Leadership, proposal: Proposal) -> controller_pb2.AlterPartitionRequest:
        partition, brokers = leadership.state.partition, self._owner.image.brokers
        request = controller_pb2.AlterPartitionRequest(
            broker_id=self._owner.broker_id,
            topic_id=partition.topic_id,
            partition=partition.index,
            leader_epoch=leadership.epoch,
            partition_epoch=proposal.partition_epoch,
        )
        for member in proposal.isr:
            known = brokers[member].broker_epoch if member in brokers else -1
            joins = member not in partition.isr
            request.new_isr.add(
                broker_id=member, broker_epoch=leadership.state.broker_epoch_of(member) if joins else known
            )
        return request
