"""What the rest of a broker asks of the controller: unary calls, beside the session's stream.

Where there are several controllers, all calls go to one of them: the session finds out which one is active, by asking
one after the other and by what a standby answers. Each answer carries the *controller epoch* of the one that has
decided it; an answer of an older epoch than one that this broker has seen is refused, whenever it comes.

Every call has a deadline. A controller that cannot be reached is a retriable FencepostError, never a gRPC exception;
an error *inside* an answer is left there for the caller to read, since what it means depends on the question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.v1 import broker_pb2, common_pb2, controller_pb2, controller_pb2_grpc
from fencepost_proto.runtime.config import address_problem, split_addresses
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.rpc_errors import rpc_errors

ALTER_PARTITION_TIMEOUT_S = 3.0
ALLOCATE_TIMEOUT_S = 3.0
ADMIN_TIMEOUT_S = 30.0
MAX_INIT_PRODUCER_ID_TIMEOUT_MS = 60_000
INIT_PRODUCER_ID_MARGIN_S = 1.0  # the controller answers at the caller's timeout; the answer travels after that
ADMIN_METHODS = (
    "CreateTopic",
    "DeleteTopic",
    "CreatePartitions",
    "AlterTopicConfig",
    "AlterPartitionReassignments",
    "ElectLeader",
    "UnregisterBroker",
    "ListProducerNames",
    "RemoveProducerName",
)
NO_BROKER_EPOCH = -1

MAX_CHANNELS = 16  # to controllers: those of the configuration, and others that standbys have named
CHECK_TIMEOUT_S = 1.0

R = TypeVar("R", bound=Message)


class ControllerLink:
    """The channels to the controllers, and the questions that go over the one to the active one."""

    def __init__(
        self,
        host: Host,
        addresses: str,
        broker_id: int,
        learn: Callable[[int, int], None] = lambda version, lineage_id: None,
    ) -> None:
        """`addresses`: of one controller or several, separated by commas. `learn` is given each metadata version, and
        its lineage, that an answer rests on, before the answer is used."""
        self.broker_epoch = NO_BROKER_EPOCH  # of the newest registration; the session sets it
        self.controller_epoch = 0  # the newest that was seen; 0: of none
        self.heartbeat_wanted = asyncio.Event()  # the session waits for it
        self._addresses = split_addresses(addresses)
        self.address = self._addresses[0]  # of the controller that is asked
        self._asked: dict[str, None] = {}  # those that do not serve, since the last pause
        self._wire = host.wire
        self._known: dict[str, _Controller] = {}  # by address
        self._asks()
        self._broker_id = broker_id
        self._learn = learn

    @property
    def has_several(self) -> bool:
        """There is more than one controller to ask."""
        return len(self._addresses) > 1

    def _asks(self) -> _Controller:
        """The controller that is asked."""
        known = self._known.get(self.address)
        if known is None:
            channel = self._wire.connect(self.address)
            known = self._known[self.address] = _Controller(
                channel,
                controller_pb2_grpc.ControllerStub(channel),
                controller_pb2_grpc.AdminStub(channel),
                health_pb2_grpc.HealthStub(channel),
            )
        return known

    @property
    def controller(self) -> controller_pb2_grpc.ControllerAsyncStub:
        """Of the controller that is asked."""
        return self._asks().controller

    @property
    def _admin(self) -> controller_pb2_grpc.AdminAsyncStub:
        return self._asks().admin

    def move_on(self, hint: str = "") -> bool:
        """The controller that is asked does not serve: ask another one. `hint`: the active one's address, as a
        standby has it.

        False: every one has been asked since the last pause, so that another is due.
        """
        self._asked[self.address] = None
        at = self._addresses.index(self.address) if self.address in self._addresses else 0
        others = [*self._addresses[at + 1 :], *self._addresses[: at + 1]]
        room = hint in self._known or len(self._known) < MAX_CHANNELS
        candidates = [hint, *others] if self.has_several and hint and room and not address_problem(hint) else others
        untried = [address for address in candidates if address not in self._asked]
        self.address = (untried or others)[0]
        if not untried:
            self._asked.clear()
        return bool(untried)

    def serves(self) -> None:
        """The controller that is asked has answered as the active one."""
        self._asked.clear()

    def check_epoch(self, epoch: int) -> None:
        """What was decided under this controller epoch is about to be used. Raises NotController where a newer one
        was seen."""
        if epoch < self.controller_epoch:
            raise errors.NotController(
                f"controller {self.address} answers under controller epoch {epoch}, and broker {self._broker_id} has seen "
                f"{self.controller_epoch}: it is not active any more"
            )
        self.controller_epoch = epoch

    async def check_alive(self) -> None:
        """Raises NotController or RequestTimedOut where the controller's process does not answer."""
        health = self._asks().health
        with rpc_errors(self.address, "controller", errors.NotController):
            await health.Check(health_pb2.HealthCheckRequest(), timeout=CHECK_TIMEOUT_S)  # type: ignore[attr-defined]

    def request_heartbeat(self) -> None:
        """Send the next heartbeat at once: something that it reports has changed (a replica failed, …)."""
        self.heartbeat_wanted.set()

    async def alter_partition(
        self, request: controller_pb2.AlterPartitionRequest
    ) -> controller_pb2.AlterPartitionResponse:
        """Raises NotController or RequestTimedOut where it is unknown whether the change was made."""
        return await self._call(self.controller.AlterPartition(request, timeout=ALTER_PARTITION_TIMEOUT_S))

    async def start_replica_over(
        self, request: controller_pb2.StartReplicaOverRequest
    ) -> controller_pb2.StartReplicaOverResponse:
        """Raises NotController or RequestTimedOut where it is unknown whether the change was made."""
        return await self._call(self.controller.StartReplicaOver(request, timeout=ALTER_PARTITION_TIMEOUT_S))

    async def delete_records(self, deletions: Iterable[tuple[PartitionKey, int, int]]) -> list[FencepostError | None]:
        """Of partitions that this broker leads: (which, under which leader epoch, records below which offset).

        Answers for each the error that refuses it, or None: it is in the metadata, which comes on the session.

        Raises FencepostError where the whole request was refused; NotController or RequestTimedOut where it is unknown
        whether anything was changed.
        """
        request = controller_pb2.DeletedRecordsRequest(broker_id=self._broker_id, broker_epoch=self.broker_epoch)
        for (topic_id, partition), leader_epoch, end_offset in deletions:
            request.deletions.add(
                topic_id=topic_id, partition=partition, leader_epoch=leader_epoch, end_offset=end_offset
            )
        answer = await self._call(self.controller.DeleteRecords(request, timeout=ALTER_PARTITION_TIMEOUT_S))
        errors.raise_for(answer.error)
        if len(answer.results) != len(request.deletions):
            raise errors.InvariantBroken(
                f"the controller answered {len(request.deletions)} deletions with {len(answer.results)} results"
            )
        return [errors.from_proto(result) if result.code else None for result in answer.results]

    async def allocate_producer_ids(self) -> range:
        """A block of producer ids that no one else has or will get. Raises FencepostError."""
        request = controller_pb2.AllocateProducerIdsRequest(broker_id=self._broker_id, broker_epoch=self.broker_epoch)
        answer = await self._call(self.controller.AllocateProducerIds(request, timeout=ALLOCATE_TIMEOUT_S))
        errors.raise_for(answer.error)
        if answer.count < 1 or answer.first_producer_id < 0:
            raise errors.InvariantBroken(
                f"the controller allocated {answer.count} producer ids from {answer.first_producer_id}"
            )
        self._learn(answer.metadata_version, answer.lineage_id)
        return range(answer.first_producer_id, answer.first_producer_id + answer.count)

    async def init_producer_id(self, request: broker_pb2.InitProducerIdRequest) -> broker_pb2.InitProducerIdResponse:
        """For a named producer; the controller holds the answer back for up to the request's timeout."""
        timeout_ms = min(max(request.timeout_ms, 0), MAX_INIT_PRODUCER_ID_TIMEOUT_MS)
        timeout_s = timeout_ms / 1000 + INIT_PRODUCER_ID_MARGIN_S
        return await self._call(self.controller.InitProducerId(request, timeout=timeout_s))

    async def create_topic(
        self, request: controller_pb2.CreateTopicRequest, timeout_s: float
    ) -> controller_pb2.CreateTopicResponse:
        """Raises the FencepostError that refuses it; NotController or RequestTimedOut where that is unknown."""
        answer = await self._call(self._admin.CreateTopic(request, timeout=timeout_s))
        errors.raise_for(answer.error)
        return answer

    async def admin(self, method_name: str, request: Message, timeout_s: float = ADMIN_TIMEOUT_S) -> Message:
        """One call of the Admin service, by its name there."""
        if method_name not in ADMIN_METHODS:
            raise errors.InvalidRequest(f"{method_name!r} is not a method of the Admin service")
        method: Callable[..., Awaitable[Message]] = getattr(self._admin, method_name)
        return await self._call(method(request, timeout=timeout_s))

    async def close(self) -> None:
        known, self._known = self._known, {}
        for controller in known.values():
            await controller.channel.close()

    async def _call(self, call: Awaitable[R]) -> R:
        with rpc_errors(self.address, "controller", errors.NotController):
            answer = await call
        decided = cast(_Decided, answer)
        if decided.error.code != errors.ErrorCode.NOT_CONTROLLER:
            self.check_epoch(decided.controller_epoch)
        return answer


@dataclass(frozen=True, slots=True)
class _Controller:
    """One controller's channel, and the stubs on it."""

    channel: grpc.aio.Channel
    controller: controller_pb2_grpc.ControllerAsyncStub
    admin: controller_pb2_grpc.AdminAsyncStub
    health: health_pb2_grpc.HealthStub


class _Decided(Protocol):
    """Every answer of a controller."""

    controller_epoch: int
    error: common_pb2.Error
