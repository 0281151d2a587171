"""The Broker and Replication services: each method is the function of the file that is named after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import grpc

from fencepost_node.client_limits import ClientLimits, TooManyStreams
from fencepost_node.controller_link import ControllerLink
from fencepost_node.folders.known_metadata import KnownMetadata
from fencepost_node.grpc.delete_records import delete_records
from fencepost_node.grpc.describe_broker_config import describe_broker_config
from fencepost_node.grpc.describe_held import describe_held
from fencepost_node.grpc.describe_log_dirs import describe_log_dirs
from fencepost_node.grpc.describe_producers import ProducerLists, describe_producers
from fencepost_node.grpc.fetch import fetch
from fencepost_node.grpc.init_producer_id import init_producer_id
from fencepost_node.grpc.list_offsets import list_offsets
from fencepost_node.grpc.metadata import metadata, watch_metadata
from fencepost_node.grpc.observe import Observers, TooManyObservers, observe
from fencepost_node.grpc.produce import produce
from fencepost_node.grpc.replicate import replicate
from fencepost_node.metadata_feed import MetadataFeed
from fencepost_node.producers.new_producers import NewProducers
from fencepost_node.producers.producer_ids import ProducerIds
from fencepost_node.replica_manager import ReplicaManager
from fencepost_proto.protocol.errors import FencepostError, InvalidRequest, to_proto
from fencepost_proto.protocol.v1 import (
    broker_pb2,
    broker_pb2_grpc,
    controller_pb2,
    controller_pb2_grpc,
    replication_pb2,
    replication_pb2_grpc,
)
from fencepost_proto.transport.answering import Answering, Context


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
    limits: ClientLimits
    lists: ProducerLists
    max_delivery_timeout_ms: int  # sent to clients
    new_producers: NewProducers
    observers: Observers = field(default_factory=Observers)

    async def Produce(  # type: ignore[override]  # writes to the context instead of yielding
        self, request_iterator: AsyncIterator[broker_pb2.ProduceRequest], context: Context
    ) -> None:
        admit = partial(self.new_producers.admit, context.peer())
        await self._stream("Produce", produce(self.manager, request_iterator, context, admit), context)

    async def Fetch(  # type: ignore[override]  # as above
        self, request_iterator: AsyncIterator[broker_pb2.FetchRequest], context: Context
    ) -> None:
        await self._stream("Fetch", fetch(self.manager, request_iterator, context, self.limits.answers), context)

    async def ListOffsets(
        self, request: broker_pb2.ListOffsetsRequest, context: Context
    ) -> broker_pb2.ListOffsetsResponse:
        return await self.answering.unary(broker_pb2.ListOffsetsResponse, list_offsets(self.manager, request))

    async def Metadata(self, request: broker_pb2.MetadataRequest, context: Context) -> broker_pb2.MetadataResponse:
        with self.answering.counted("Metadata"):
            answer = await metadata(self.feed, self.broker_id, request)
        if answer is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"broker {self.broker_id} has no metadata yet")
        return answer

    async def WatchMetadata(  # type: ignore[override]  # as above
        self, request: broker_pb2.WatchMetadataRequest, context: Context
    ) -> None:
        await self._stream("WatchMetadata", watch_metadata(self.feed, context, self.limits.answers), context)

    async def _stream(self, method: str, work: Coroutine[None, None, None], context: Context) -> None:
        """Serve it as one of so many."""
        try:
            admission = self.limits.admit(method, context.peer())
        except TooManyStreams as error:
            work.close()
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        with admission:
            await self.answering.stream(work, context)

    async def InitProducerId(
        self, request: broker_pb2.InitProducerIdRequest, context: Context
    ) -> broker_pb2.InitProducerIdResponse:
        work = self._init_producer_id(request, context.peer())
        return await self.answering.unary(broker_pb2.InitProducerIdResponse, work)

    async def _init_producer_id(
        self, request: broker_pb2.InitProducerIdRequest, peer: str
    ) -> broker_pb2.InitProducerIdResponse:
        if not request.keep_alive and (wait_s := self.new_producers.take_id(peer)) > 0:
            await asyncio.sleep(wait_s)
        return await init_producer_id(self.ids, self.link, request, self.max_delivery_timeout_ms)

    async def DescribeProducers(
        self, request: broker_pb2.DescribeProducersRequest, context: Context
    ) -> broker_pb2.DescribeProducersResponse:
        work = describe_producers(self.manager, request, context, self.lists)
        # The message, or its encoding, which the server sends as it is.
        message = cast(Awaitable[broker_pb2.DescribeProducersResponse], work)
        return await self.answering.unary(broker_pb2.DescribeProducersResponse, message)

    async def DeleteRecords(
        self, request: broker_pb2.DeleteRecordsRequest, context: Context
    ) -> broker_pb2.DeleteRecordsResponse:
        work = delete_records(self.manager, self.link, request, context)
        return await self.answering.unary(broker_pb2.DeleteRecordsResponse, work)

    async def Observe(  # type: ignore[override]  # as above
        self, request: broker_pb2.ObserveRequest, context: Context
    ) -> None:
        try:
            observing = self.observers.admit()
        except TooManyObservers as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        with observing:
            await self._stream("Observe", observe(self.manager, request, context), context)

    async def DescribeBrokerConfig(
        self, request: broker_pb2.DescribeBrokerConfigRequest, context: Context
    ) -> broker_pb2.DescribeBrokerConfigResponse:
        return describe_broker_config(self.manager.config)

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


@dataclass(slots=True)
class RecoveryService(controller_pb2_grpc.RecoveryServicer):
    """For `fencepost controller recover`, while there is no controller."""

    manager: ReplicaManager
    known: KnownMetadata
    head: Callable[[], controller_pb2.HeldHead]  # raises FencepostError while there is a session with a controller
    answering: Answering
    _busy: bool = False

    async def DescribeHeld(  # type: ignore[override]  # as above
        self, request: controller_pb2.DescribeHeldRequest, context: Context
    ) -> None:
        await self.answering.stream(self._describe(context), context)

    async def _describe(self, context: Context) -> None:
        if self._busy:
            error: FencepostError = InvalidRequest("what this broker holds is being sent to another caller")
            await context.write(controller_pb2.Held(error=to_proto(error)))
            return
        self._busy = True
        try:
            async for part in describe_held(self.manager, self.known, self.head()):
                await context.write(part)
        except FencepostError as refused:
            await context.write(controller_pb2.Held(error=to_proto(refused)))
        finally:
            self._busy = False
