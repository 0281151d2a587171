"""The Controller and Admin services: each method is the function of its noun's file, once the controller may decide."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from random import Random

from fencepost_controller.commands import Commands
from fencepost_controller.config import ControllerConfig
from fencepost_controller.fences import Fences
from fencepost_controller.opening import Opening
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
from fencepost_controller.session_registry import SessionRegistry
from fencepost_proto.protocol.v1 import broker_pb2, controller_pb2_grpc
from fencepost_proto.protocol.v1 import controller_pb2 as pb
from fencepost_proto.transport.answering import Answering, Context


@dataclass(slots=True)
class ControllerService(controller_pb2_grpc.ControllerServicer):
    """What brokers ask."""

    commands: Commands
    sessions: SessionRegistry
    fences: Fences
    config: ControllerConfig
    answering: Answering

    async def Session(  # type: ignore[override]  # writes to the context instead of yielding
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Context
    ) -> None:
        await serve_session(self.sessions, request_iterator, context, self.answering)

    async def AlterPartition(self, request: pb.AlterPartitionRequest, context: Context) -> pb.AlterPartitionResponse:
        await self.sessions.opening.wait()
        work = alter_partition(self.commands, request)
        return await self.answering.unary(pb.AlterPartitionResponse, work)

    async def StartReplicaOver(
        self, request: pb.StartReplicaOverRequest, context: Context
    ) -> pb.StartReplicaOverResponse:
        return await self.answering.unary(pb.StartReplicaOverResponse, start_replica_over(self.commands, request))

    async def DeleteRecords(self, request: pb.DeletedRecordsRequest, context: Context) -> pb.DeletedRecordsResponse:
        await self.sessions.opening.wait()
        return await self.answering.unary(pb.DeletedRecordsResponse, delete_records(self.commands, request))

    async def AllocateProducerIds(
        self, request: pb.AllocateProducerIdsRequest, context: Context
    ) -> pb.AllocateProducerIdsResponse:
        await self.sessions.opening.wait()
        work = allocate_producer_ids(self.commands, request)
        return await self.answering.unary(pb.AllocateProducerIdsResponse, work)

    async def InitProducerId(
        self, request: broker_pb2.InitProducerIdRequest, context: Context
    ) -> broker_pb2.InitProducerIdResponse:
        await self.sessions.opening.wait()
        work = init_producer_id(self.commands, self.fences, self.config, request)
        return await self.answering.unary(broker_pb2.InitProducerIdResponse, work)


@dataclass(slots=True)
class AdminService(controller_pb2_grpc.AdminServicer):
    """What operators ask, by way of a broker or directly."""

    commands: Commands
    opening: Opening
    random: Random
    min_segment_bytes: int
    answering: Answering

    async def CreateTopic(self, request: pb.CreateTopicRequest, context: Context) -> pb.CreateTopicResponse:
        await self.opening.wait()
        work = create_topic(self.commands, self.random, request, self.min_segment_bytes)
        return await self.answering.unary(pb.CreateTopicResponse, work)

    async def DeleteTopic(self, request: pb.DeleteTopicRequest, context: Context) -> pb.DeleteTopicResponse:
        await self.opening.wait()
        return await self.answering.unary(pb.DeleteTopicResponse, delete_topic(self.commands, request))

    async def CreatePartitions(
        self, request: pb.CreatePartitionsRequest, context: Context
    ) -> pb.CreatePartitionsResponse:
        await self.opening.wait()
        return await self.answering.unary(pb.CreatePartitionsResponse, create_partitions(self.commands, request))

    async def AlterTopicConfig(
        self, request: pb.AlterTopicConfigRequest, context: Context
    ) -> pb.AlterTopicConfigResponse:
        await self.opening.wait()
        work = alter_topic_config(self.commands, request, self.min_segment_bytes)
        return await self.answering.unary(pb.AlterTopicConfigResponse, work)

    async def AlterPartitionReassignments(
        self, request: pb.AlterPartitionReassignmentsRequest, context: Context
    ) -> pb.AlterPartitionReassignmentsResponse:
        await self.opening.wait()
        work = alter_partition_reassignments(self.commands, request)
        return await self.answering.unary(pb.AlterPartitionReassignmentsResponse, work)

    async def ElectLeader(self, request: pb.ElectLeaderRequest, context: Context) -> pb.ElectLeaderResponse:
        await self.opening.wait()
        return await self.answering.unary(pb.ElectLeaderResponse, elect_leader(self.commands, request))

    async def UnregisterBroker(
        self, request: pb.UnregisterBrokerRequest, context: Context
    ) -> pb.UnregisterBrokerResponse:
        await self.opening.wait()
        return await self.answering.unary(pb.UnregisterBrokerResponse, unregister_broker(self.commands, request))

    async def ListProducerNames(
        self, request: pb.ListProducerNamesRequest, context: Context
    ) -> pb.ListProducerNamesResponse:
        await self.opening.wait()
        return await self.answering.unary(pb.ListProducerNamesResponse, list_producer_names(self.commands, request))

    async def RemoveProducerName(
        self, request: pb.RemoveProducerNameRequest, context: Context
    ) -> pb.RemoveProducerNameResponse:
        await self.opening.wait()
        return await self.answering.unary(pb.RemoveProducerNameResponse, remove_producer_name(self.commands, request))
