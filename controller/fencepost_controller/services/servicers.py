"""The Controller and Admin services: each method is the function of its noun's file, once the controller may decide.

Every answer carries the controller epoch, refusals too. A standby refuses everything: NOT_CONTROLLER, with the active
one's address.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeVar

from fencepost_controller.config import ControllerConfig
from fencepost_controller.reign import Reign
from fencepost_controller.services.admin import (
    alter_partition_reassignments,
    alter_topic_config,
    create_partitions,
    create_topic,
    delete_topic,
    elect_leader,
    unregister_broker,
)
from fencepost_controller.services.partitions import alter_partition, delete_records, start_replica_over
from fencepost_controller.services.producers import (
    allocate_producer_ids,
    init_producer_id,
    list_producer_names,
    remove_producer_name,
)
from fencepost_controller.services.session_stream import serve_session
from fencepost_proto.protocol.v1 import broker_pb2, common_pb2, controller_pb2_grpc
from fencepost_proto.protocol.v1 import controller_pb2 as pb
from fencepost_proto.transport.answering import Answering, Context


class Answer(Protocol):
    """Of every method here."""

    controller_epoch: int

    @property
    def error(self) -> common_pb2.Error: ...


A = TypeVar("A", bound=Answer)
ReignOf = Callable[[], Reign]  # raises NotController where this controller does not decide


@dataclass(frozen=True, slots=True)
class Deciding:
    """How each request is answered: by what decides here, under its epoch."""

    reign: ReignOf
    answering: Answering

    async def answer(
        self, response: Callable[..., A], work: Callable[[Reign], Awaitable[A]], *, waits: bool = True
    ) -> A:
        """The answer to one request. `waits`: not before the controller may decide."""
        epoch = 0

        async def decide() -> A:
            nonlocal epoch
            reign = self.reign()
            epoch = reign.epoch
            if waits:
                await reign.sessions.opening.wait()
            return await work(reign)

        answer = await self.answering.unary(response, decide())
        if epoch:
            answer.controller_epoch = epoch
        return answer


@dataclass(slots=True)
class ControllerService(controller_pb2_grpc.ControllerServicer):
    """What brokers ask."""

    deciding: Deciding
    config: ControllerConfig

    async def Session(  # type: ignore[override]  # writes to the context instead of yielding
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Context
    ) -> None:
        deciding = self.deciding
        await serve_session(lambda: deciding.reign().sessions, request_iterator, context, deciding.answering)

    async def AlterPartition(self, request: pb.AlterPartitionRequest, context: Context) -> pb.AlterPartitionResponse:
        return await self.deciding.answer(
            pb.AlterPartitionResponse,
            lambda reign: alter_partition(reign.commands, request),
        )

    async def StartReplicaOver(
        self, request: pb.StartReplicaOverRequest, context: Context
    ) -> pb.StartReplicaOverResponse:
        return await self.deciding.answer(
            pb.StartReplicaOverResponse,
            lambda reign: start_replica_over(reign.commands, request),
            waits=False,
        )

    async def DeleteRecords(self, request: pb.DeletedRecordsRequest, context: Context) -> pb.DeletedRecordsResponse:
        return await self.deciding.answer(
            pb.DeletedRecordsResponse,
            lambda reign: delete_records(reign.commands, request),
        )

    async def AllocateProducerIds(
        self, request: pb.AllocateProducerIdsRequest, context: Context
    ) -> pb.AllocateProducerIdsResponse:
        return await self.deciding.answer(
            pb.AllocateProducerIdsResponse,
            lambda reign: allocate_producer_ids(reign.commands, request),
        )

    async def InitProducerId(
        self, request: broker_pb2.InitProducerIdRequest, context: Context
    ) -> broker_pb2.InitProducerIdResponse:
        return await self.deciding.answer(
            broker_pb2.InitProducerIdResponse,
            lambda reign: init_producer_id(reign.commands, reign.fences, self.config, request),
        )


@dataclass(slots=True)
class AdminService(controller_pb2_grpc.AdminServicer):
    """What operators ask, by way of a broker or directly."""

    deciding: Deciding
    random: Random
    min_segment_bytes: int

    async def CreateTopic(self, request: pb.CreateTopicRequest, context: Context) -> pb.CreateTopicResponse:
        return await self.deciding.answer(
            pb.CreateTopicResponse,
            lambda reign: create_topic(reign.commands, self.random, request, self.min_segment_bytes),
        )

    async def DeleteTopic(self, request: pb.DeleteTopicRequest, context: Context) -> pb.DeleteTopicResponse:
        return await self.deciding.answer(pb.DeleteTopicResponse, lambda reign: delete_topic(reign.commands, request))

    async def CreatePartitions(
        self, request: pb.CreatePartitionsRequest, context: Context
    ) -> pb.CreatePartitionsResponse:
        return await self.deciding.answer(
            pb.CreatePartitionsResponse, lambda reign: create_partitions(reign.commands, request)
        )

    async def AlterTopicConfig(
        self, request: pb.AlterTopicConfigRequest, context: Context
    ) -> pb.AlterTopicConfigResponse:
        return await self.deciding.answer(
            pb.AlterTopicConfigResponse,
            lambda reign: alter_topic_config(reign.commands, request, self.min_segment_bytes),
        )

    async def AlterPartitionReassignments(
        self, request: pb.AlterPartitionReassignmentsRequest, context: Context
    ) -> pb.AlterPartitionReassignmentsResponse:
        return await self.deciding.answer(
            pb.AlterPartitionReassignmentsResponse,
            lambda reign: alter_partition_reassignments(reign.commands, request),
        )

    async def ElectLeader(self, request: pb.ElectLeaderRequest, context: Context) -> pb.ElectLeaderResponse:
        return await self.deciding.answer(pb.ElectLeaderResponse, lambda reign: elect_leader(reign.commands, request))

    async def UnregisterBroker(
        self, request: pb.UnregisterBrokerRequest, context: Context
    ) -> pb.UnregisterBrokerResponse:
        return await self.deciding.answer(
            pb.UnregisterBrokerResponse, lambda reign: unregister_broker(reign.commands, request)
        )

    async def ListProducerNames(
        self, request: pb.ListProducerNamesRequest, context: Context
    ) -> pb.ListProducerNamesResponse:
        return await self.deciding.answer(
            pb.ListProducerNamesResponse, lambda reign: list_producer_names(reign.commands, request)
        )

    async def RemoveProducerName(
        self, request: pb.RemoveProducerNameRequest, context: Context
    ) -> pb.RemoveProducerNameResponse:
        return await self.deciding.answer(
            pb.RemoveProducerNameResponse, lambda reign: remove_producer_name(reign.commands, request)
        )
