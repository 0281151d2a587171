"""A small cluster in this process that clients can read from: real gRPC on free ports, logs in lists, no replication.

The test decides everything: who leads, what each broker knows, when one falls silent or dies. Committed batches are in
one log per partition that all brokers share; a broker serves it only while it believes that it leads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import grpc

from fencepost_node.config import BrokerConfig
from fencepost_node.grpc.describe_broker_config import describe_broker_config
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import (
    NO_LEADER,
    BrokerRegistration,
    ClusterIdentity,
    Entity,
    MetadataImage,
    Partition,
    PartitionKey,
    Topic,
    delta_to_proto,
)
from fencepost_proto.protocol.record_batch import BatchHeader, read_header, stamp
from fencepost_proto.protocol.records import BatchBuilder, Compression
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc, common_pb2, controller_pb2, controller_pb2_grpc
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.wire import RunningServer, serve
from tests import asynchronous

T = TypeVar("T")


def run(test: Awaitable[T]) -> T:
    return asynchronous.run(test, 60)


def batch_of(
    values: list[bytes],
    *,
    timestamps: list[int] | None = None,
    key: bytes | None = None,
    compression: Compression = Compression.NONE,
) -> bytes:
    builder = BatchBuilder(compression, 1 << 24)
    for number, value in enumerate(values):
        assert builder.append(timestamps[number] if timestamps else 1000 + number, key, value, [])
    return builder.build(-1, -1, -1)


@dataclass
class Log:
    """The committed log of one partition."""

    batches: list[tuple[BatchHeader, bytes]] = field(default_factory=list)
    start_offset: int = 0
    grown: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def end_offset(self) -> int:
        return self.batches[-1][0].end_offset if self.batches else self.start_offset

    def append(self, batch: bytes, leader_epoch: int = 0) -> None:
        stamped = stamp(batch, self.end_offset, leader_epoch)
        self.batches.append((read_header(stamped), stamped))
        self.grown.set()
        self.grown = asyncio.Event()

    def read(self, offset: int, max_bytes: int) -> bytes:
        found: list[bytes] = []
        size = 0
        for header, batch in self.batches:
            if header.end_offset <= offset:
                continue
            if found and size + len(batch) > max_bytes:
                break
            found.append(batch)
            size += len(batch)
        return b"".join(found)

    def remove_before(self, offset: int) -> None:
        self.batches = [(header, batch) for header, batch in self.batches if header.base_offset >= offset]
        self.start_offset = offset


class FakeBroker(broker_pb2_grpc.BrokerServicer, controller_pb2_grpc.AdminServicer):
    """One broker: its own image, the cluster's logs."""

    def __init__(self, cluster: FakeCluster, broker_id: int) -> None:
        self.cluster = cluster
        self.id = broker_id
        self.image = MetadataImage()
        self.awake = asyncio.Event()
        self.awake.set()
        self.changed = asyncio.Event()
        self.watchers = 0
        self.fetches: list[broker_pb2.FetchRequest] = []
        self.fetch_streams = 0
        self.refuse: dict[PartitionKey, errors.FencepostError] = {}  # instead of an answer
        self.corrupt_next = 0  # so many answers with a flipped bit
        self.server: RunningServer | None = None
        self.address = ""

    async def start(self) -> None:
        def add(server: grpc.aio.Server) -> None:
            broker_pb2_grpc.add_BrokerServicer_to_server(self, server)
            controller_pb2_grpc.add_AdminServicer_to_server(self, server)

        self.server = await serve(Host().wire, self.address or "127.0.0.1:0", ["fencepost.v1.Broker"], add)
        self.address = self.server.address

    async def kill(self) -> None:
        """Break every stream and refuse connections, as the death of a process does."""
        if self.server is not None:
            await self.server.stop(0)
            self.server = None

    def pause(self) -> None:
        self.awake.clear()

    def resume(self) -> None:
        self.awake.set()

    def take(self, image: MetadataImage) -> None:
        self.image = image
        self.changed.set()
        self.changed = asyncio.Event()

    # ---- Metadata ----

    async def WatchMetadata(self, request: Any, context: Any) -> AsyncIterator[common_pb2.MetadataDelta]:
        self.watchers += 1
        try:
            image = self.image
            yield delta_to_proto(image.version, image.entities(), image=True)
            while True:
                changed = self.changed
                if self.image is image:
                    try:
                        async with asyncio.timeout(self.cluster.keep_alive_s):
                            await changed.wait()
                    except TimeoutError:
                        pass
                await self.awake.wait()
                if self.image is image:
                    yield common_pb2.MetadataDelta(version=image.version)
                else:
                    yield _delta(image, self.image)
                    image = self.image
        finally:
            self.watchers -= 1

    async def Metadata(self, request: Any, context: Any) -> broker_pb2.MetadataResponse:
        await self.awake.wait()
        return broker_pb2.MetadataResponse(
            image=delta_to_proto(self.image.version, self.image.entities(), image=True), answering_broker_id=self.id
        )

    # ---- Reading ----

    def _led(self, topic_id: str, index: int, leader_epoch: int) -> Log:
        partition = self.image.partitions.get((topic_id, index))
        if (topic_id, index) in self.refuse:
            raise self.refuse[topic_id, index]
        if partition is None:
            raise errors.UnknownTopicId(topic_id)
        hint = self.image.current_leader(partition)
        if leader_epoch < partition.leader_epoch:
            raise errors.FencedLeaderEpoch(f"epoch {leader_epoch}", current_leader=hint)
        if leader_epoch > partition.leader_epoch:
            raise errors.UnknownLeaderEpoch(f"epoch {leader_epoch}")
        if partition.leader != self.id:
            raise errors.NotLeaderOrFollower(f"broker {self.id}", current_leader=hint)
        return self.cluster.logs[topic_id, index]

    def _fetched(self, asked: broker_pb2.FetchPartition) -> broker_pb2.FetchedPartition:
        answer = broker_pb2.FetchedPartition(topic_id=asked.topic_id, partition=asked.partition, high_watermark=-1)
        try:
            log = self._led(asked.topic_id, asked.partition, asked.leader_epoch)
            answer.high_watermark, answer.log_start_offset = log.end_offset, log.start_offset
            if not log.start_offset <= asked.fetch_offset <= log.end_offset:
                raise errors.OffsetOutOfRange(f"{asked.fetch_offset}")
            records = log.read(asked.fetch_offset, asked.max_bytes)
            if records and self.corrupt_next:
                self.corrupt_next -= 1
                records = records[:-1] + bytes([records[-1] ^ 1])
            answer.records = records
        except errors.FencepostError as error:
            answer.error.CopyFrom(errors.to_proto(error))
            answer.high_watermark = answer.log_start_offset = -1
        return answer

    async def Fetch(self, request_iterator: Any, context: Any) -> AsyncIterator[broker_pb2.FetchResponse]:
        self.fetch_streams += 1
        try:
            async for request in request_iterator:
                self.fetches.append(request)
                deadline = asyncio.get_running_loop().time() + request.max_wait_ms / 1000
                while True:
                    grown = [self.cluster.logs[p.topic_id, p.partition].grown.wait() for p in request.partitions]
                    answer = [self._fetched(asked) for asked in request.partitions]
                    left_s = deadline - asyncio.get_running_loop().time()
                    if left_s <= 0 or any(a.records or a.error.code for a in answer):
                        break
                    await _first_of([*grown, self.changed.wait()], left_s)
                for unused in grown:
                    unused.close()
                await self.awake.wait()
                yield broker_pb2.FetchResponse(partitions=answer)
        finally:
            self.fetch_streams -= 1

    async def ListOffsets(self, request: Any, context: Any) -> broker_pb2.ListOffsetsResponse:
        await self.awake.wait()
        try:
            log = self._led(request.topic_id, request.partition, request.leader_epoch)
        except errors.FencepostError as error:
            return broker_pb2.ListOffsetsResponse(error=errors.to_proto(error), offset=-1, timestamp_ms=-1)
        if request.timestamp_ms == -1:
            return broker_pb2.ListOffsetsResponse(offset=log.end_offset, timestamp_ms=-1)
        if request.timestamp_ms == -2:
            return broker_pb2.ListOffsetsResponse(offset=log.start_offset, timestamp_ms=-1)
        for header, _ in log.batches:
            if header.max_timestamp >= request.timestamp_ms:
                return broker_pb2.ListOffsetsResponse(offset=header.base_offset, timestamp_ms=header.max_timestamp)
        return broker_pb2.ListOffsetsResponse(offset=-1, timestamp_ms=-1)

    # ---- Status and admin ----

    async def DescribeProducers(self, request: Any, context: Any) -> broker_pb2.DescribeProducersResponse:
        try:
            log = self._led(
                request.topic_id,
                request.partition,
                self.image.partitions[request.topic_id, request.partition].leader_epoch,
            )
        except errors.FencepostError as error:
            return broker_pb2.DescribeProducersResponse(error=errors.to_proto(error))
        batch = broker_pb2.BatchState(first_sequence=3, last_sequence=7, base_offset=40, timestamp_ms=1234)
        producer = broker_pb2.ProducerStateInfo(producer_id=9, producer_epoch=2, batches=[batch])
        return broker_pb2.DescribeProducersResponse(
            producers=[producer], log_end_offset=log.end_offset, high_watermark=log.end_offset, leader_epoch=1
        )

    async def DeleteRecords(self, request: Any, context: Any) -> broker_pb2.DeleteRecordsResponse:
        try:
            log = self._led(request.topic_id, request.partition, request.leader_epoch)
        except errors.FencepostError as error:
            return broker_pb2.DeleteRecordsResponse(error=errors.to_proto(error))
        if request.end_offset > log.end_offset:
            above = errors.OffsetOutOfRange(f"offset {request.end_offset}: the high watermark is {log.end_offset}")
            return broker_pb2.DeleteRecordsResponse(error=errors.to_proto(above))
        log.remove_before(max(log.start_offset, log.end_offset if request.end_offset < 0 else request.end_offset))
        return broker_pb2.DeleteRecordsResponse(log_start_offset=log.start_offset)

    async def DescribeBrokerConfig(self, request: Any, context: Any) -> broker_pb2.DescribeBrokerConfigResponse:
        return describe_broker_config(BrokerConfig(broker_id=self.id, data_dir="/data", controller="127.0.0.1:1"))

    async def Observe(  # type: ignore[override]  # nothing is yielded
        self, request: Any, context: Any
    ) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this broker cannot be observed")

    async def DescribeLogDirs(self, request: Any, context: Any) -> broker_pb2.DescribeLogDirsResponse:
        await self.awake.wait()
        replicas = [
            broker_pb2.ReplicaInfo(
                topic_id=p.topic_id,
                partition=p.index,
                is_leader=p.leader == self.id,
                leader_epoch=p.leader_epoch,
                log_end_offset=self.cluster.logs[p.id].end_offset,
                high_watermark=self.cluster.logs[p.id].end_offset,
                appended_batches=len(self.cluster.logs[p.id].batches),
                last_epoch=p.leader_epoch if self.cluster.logs[p.id].batches else -1,
            )
            for p in self.image.partitions.values()
            if self.id in p.replicas
        ]
        return broker_pb2.DescribeLogDirsResponse(
            broker_id=self.id, replicas=replicas, metadata_version=self.image.version, recovery_seconds=0.5
        )

    async def CreateTopic(self, request: Any, context: Any) -> controller_pb2.CreateTopicResponse:
        answer: controller_pb2.CreateTopicResponse = await self.cluster.answer_admin(
            self, "CreateTopic", request, context
        )
        return answer

    async def DeleteTopic(self, request: Any, context: Any) -> controller_pb2.DeleteTopicResponse:
        answer: controller_pb2.DeleteTopicResponse = await self.cluster.answer_admin(
            self, "DeleteTopic", request, context
        )
        return answer

    async def AlterPartitionReassignments(
        self, request: Any, context: Any
    ) -> controller_pb2.AlterPartitionReassignmentsResponse:
        answer: controller_pb2.AlterPartitionReassignmentsResponse = await self.cluster.answer_admin(
            self, "AlterPartitionReassignments", request, context
        )
        return answer

    async def ListProducerNames(self, request: Any, context: Any) -> controller_pb2.ListProducerNamesResponse:
        answer: controller_pb2.ListProducerNamesResponse = await self.cluster.answer_admin(
            self, "ListProducerNames", request, context
        )
        return answer

    async def RemoveProducerName(self, request: Any, context: Any) -> controller_pb2.RemoveProducerNameResponse:
        answer: controller_pb2.RemoveProducerNameResponse = await self.cluster.answer_admin(
            self, "RemoveProducerName", request, context
        )
        return answer

    async def ElectLeader(self, request: Any, context: Any) -> controller_pb2.ElectLeaderResponse:
        answer: controller_pb2.ElectLeaderResponse = await self.cluster.answer_admin(
            self, "ElectLeader", request, context
        )
        return answer

    async def CreatePartitions(self, request: Any, context: Any) -> controller_pb2.CreatePartitionsResponse:
        answer: controller_pb2.CreatePartitionsResponse = await self.cluster.answer_admin(
            self, "CreatePartitions", request, context
        )
        return answer

    async def AlterTopicConfig(self, request: Any, context: Any) -> controller_pb2.AlterTopicConfigResponse:
        answer: controller_pb2.AlterTopicConfigResponse = await self.cluster.answer_admin(
            self, "AlterTopicConfig", request, context
        )
        return answer

    async def UnregisterBroker(self, request: Any, context: Any) -> controller_pb2.UnregisterBrokerResponse:
        answer: controller_pb2.UnregisterBrokerResponse = await self.cluster.answer_admin(
            self, "UnregisterBroker", request, context
        )
        return answer

    async def Produce(self, request_iterator: Any, context: Any) -> AsyncIterator[broker_pb2.ProduceResponse]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this fake is for readers")
        yield broker_pb2.ProduceResponse()

    async def InitProducerId(self, request: Any, context: Any) -> broker_pb2.InitProducerIdResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this fake is for readers")
        raise AssertionError("abort raises")


class FakeCluster:
    """Brokers 1..n of one cluster. Use `fake_cluster`."""

    def __init__(self, brokers: int, cluster_id: str) -> None:
        self.keep_alive_s = 0.05
        self.cluster_id = cluster_id
        self.brokers = {broker_id: FakeBroker(self, broker_id) for broker_id in range(1, brokers + 1)}
        self.logs: dict[PartitionKey, Log] = {}
        self.image = MetadataImage()
        self.admin: Callable[[FakeBroker, str, Any, Any], Awaitable[Any]] | None = None
        self.stale: set[int] = set()  # brokers that the controller does not reach

    @property
    def bootstrap(self) -> list[str]:
        return [broker.address for _, broker in sorted(self.brokers.items())]

    async def start(self) -> None:
        for broker in self.brokers.values():
            await broker.start()
        self.change(
            ClusterIdentity(self.cluster_id),
            *(
                BrokerRegistration(broker.id, broker.address, 1, "incarnation", False)
                for broker in self.brokers.values()
            ),
        )

    async def stop(self) -> None:
        for broker in self.brokers.values():
            await broker.kill()

    def change(self, *entities: Entity, deleted: tuple[str, ...] = ()) -> None:
        """One more metadata version, pushed to every broker but the stale ones."""
        changes: dict[str, Entity | None] = {entity.key: entity for entity in entities}
        changes.update(dict.fromkeys(deleted))
        self.image = self.image.with_changes(self.image.version + 1, changes)
        for _, broker in sorted(self.brokers.items()):
            if broker.id not in self.stale:
                broker.take(self.image)

    def add_topic(self, name: str, partitions: int = 1, topic_id: str = "") -> str:
        topic_id = topic_id or f"id-of-{name}"
        ids = sorted(self.brokers)
        made = []
        for index in range(partitions):
            replicas = tuple(ids[(index + n) % len(ids)] for n in range(len(ids)))
            made.append(Partition(topic_id, index, replicas, replicas, replicas[0], 0, 0))
            self.logs[topic_id, index] = Log()
        self.change(Topic(topic_id, name), *made)
        return topic_id

    def elect(self, key: PartitionKey, leader: int) -> None:
        partition = self.image.partitions[key]
        self.change(replace(partition, leader=leader, leader_epoch=partition.leader_epoch + 1))

    def fence(self, broker_id: int) -> None:
        """As the controller does with a dead broker: its partitions move to the next live replica."""
        live = {b for b, broker in self.image.brokers.items() if not broker.fenced} - {broker_id}
        moved = [
            replace(p, leader=next((r for r in p.replicas if r in live), NO_LEADER), leader_epoch=p.leader_epoch + 1)
            for p in self.image.partitions.values()
            if p.leader == broker_id
        ]
        self.change(replace(self.image.brokers[broker_id], fenced=True), *moved)

    async def answer_admin(self, broker: FakeBroker, method: str, request: Any, context: Any) -> Any:
        assert self.admin is not None, f"the test expects no {method}"
        return await self.admin(broker, method, request, context)


@asynccontextmanager
async def fake_cluster(brokers: int = 3, cluster_id: str = "cluster-a") -> AsyncIterator[FakeCluster]:
    cluster = FakeCluster(brokers, cluster_id)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()


async def _first_of(waits: list[Any], timeout_s: float) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _delta(old: MetadataImage, new: MetadataImage) -> common_pb2.MetadataDelta:
    before, after = ({entity.key: entity for entity in image.entities()} for image in (old, new))
    changed: Iterator[Entity] = (entity for key, entity in after.items() if before.get(key) != entity)
    return delta_to_proto(new.version, changed, [key for key in before if key not in after])
