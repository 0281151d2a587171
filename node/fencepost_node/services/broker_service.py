"""The Broker and Replication services: each method is the function of the file that is named after it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc

from fencepost_node.controller_link import ControllerLink
from fencepost_node.metadata_feed import MetadataFeed
from fencepost_node.producer_ids import ProducerIds
from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.services.describe_log_dirs import describe_log_dirs
from fencepost_node.services.describe_producers import describe_producers
from fencepost_node.services.fetch import fetch
from fencepost_node.services.init_producer_id import init_producer_id
from fencepost_node.services.list_offsets import list_offsets
from fencepost_node.services.metadata import metadata, watch_metadata
from fencepost_node.services.produce import produce
from fencepost_node.services.replicate import replicate
from fencepost_proto.answering import Answering, Context
from fencepost_proto.v1 import broker_pb2, broker_pb2_grpc, replication_pb2, replication_pb2_grpc


@dataclass(slots=True)
class BrokerService(broker_pb2_grpc.BrokerServicer):
    """What the methods need, and which function answers which."""

    broker_id: int
    recovery_seconds: float
    manager: ReplicaManager
    feed: MetadataFeed
    ids: ProducerIds
    link: ControllerLink
    answering: Answering

    async def Produce(  # type: ignore[override]  # writes to the context instead of yielding
        self, request_iterator: AsyncIterator[broker_pb2.ProduceRequest], context: Context
    ) -> None:
        await self.answering.stream(produce(self.manager, request_iterator, context), context)

    async def Fetch(  # type: ignore[override]  # as above
        self, request_iterator: AsyncIterator[broker_pb2.FetchRequest], context: Context
    ) -> None:
        await self.answering.stream(fetch(self.manager, request_iterator, context), context)

    async def ListOffsets(
        self, request: broker_pb2.ListOffsetsRequest, context: Context
    ) -> broker_pb2.ListOffsetsResponse:
        return await self.answering.unary(broker_pb2.ListOffsetsResponse, list_offsets(self.manager, request))

    async def Metadata(self, request: broker_pb2.MetadataRequest, context: Context) -> broker_pb2.MetadataResponse:
        answer = await metadata(self.feed, self.broker_id, request)
        if answer is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"broker {self.broker_id} has no metadata yet")
        return answer

    async def WatchMetadata(  # type: ignore[override]  # as above
        self, request: broker_pb2.WatchMetadataRequest, context: Context
    ) -> None:
        await self.answering.stream(watch_metadata(self.feed, context), context)

    async def InitProducerId(
        self, request: broker_pb2.InitProducerIdRequest, context: Context
    ) -> broker_pb2.InitProducerIdResponse:
        work = init_producer_id(self.ids, self.link, request)
        return await self.answering.unary(broker_pb2.InitProducerIdResponse, work)

    async def DescribeProducers(
        self, request: broker_pb2.DescribeProducersRequest, context: Context
    ) -> broker_pb2.DescribeProducersResponse:
        work = describe_producers(self.manager, request)
        return await self.answering.unary(broker_pb2.DescribeProducersResponse, work)

    async def DescribeLogDirs(
        self, request: broker_pb2.DescribeLogDirsRequest, context: Context
    ) -> broker_pb2.DescribeLogDirsResponse:
        return describe_log_dirs(self.manager, self.broker_id, self.recovery_seconds)


@dataclass(slots=True)
class ReplicationService(replication_pb2_grpc.ReplicationServicer):
    manager: ReplicaManager
    answering: Answering

    async def Replicate(  # type: ignore[override]  # as above
        self, request_iterator: AsyncIterator[replication_pb2.ReplicateRequest], context: Context
    ) -> None:
        await self.answering.stream(replicate(self.manager, request_iterator, context), context)
