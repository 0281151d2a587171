"""The cluster of fake_broker_read, taking writes: producer state by the broker's own table, commits at once, and faults.

All brokers share each partition's log and producer state, as if replication took no time. The test says what goes wrong:
errors instead of answers, answers that never come, streams that break after the append.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fencepost_node.grpc.describe_producers import describe
from fencepost_node.producers.producer_state import Duplicate, ProducerState
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.record_batch import check_produced
from fencepost_proto.protocol.records import Record, read_records
from fencepost_proto.protocol.v1 import broker_pb2 as pb
from tests.unit.fake_broker_read import FakeBroker, FakeCluster

BREAK = "break the stream after the append"
SWALLOW = "append, and never answer"
Fault = str | errors.FencepostError


class FakeWriteBroker(FakeBroker):
    cluster: FakeWriteCluster

    def __init__(self, cluster: FakeWriteCluster, broker_id: int) -> None:
        super().__init__(cluster, broker_id)
        self.streams = 0
        self.messages: list[int] = []  # batches in each
        self.inits: list[pb.InitProducerIdRequest] = []

    async def Produce(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.ProduceResponse]:
        self.streams += 1
        try:
            async for request in request_iterator:
                await self.awake.wait()
                if not request.batches:
                    continue
                self.messages.append(len(request.batches))
                results = [self._produce(batch) for batch in request.batches]
                answered = [result for result in results if isinstance(result, pb.ProduceResult)]
                await self.cluster.answering.wait()
                if answered:
                    yield pb.ProduceResponse(results=reversed(answered) if self.cluster.reverse_answers else answered)
                if BREAK in results:
                    return
        finally:
            self.streams -= 1

    def _produce(self, batch: pb.ProduceBatch) -> pb.ProduceResult | Fault:
        result = pb.ProduceResult(correlation_id=batch.correlation_id, base_offset=-1)
        key = (batch.topic_id, batch.partition)
        faults = self.cluster.faults[key]
        fault = faults.pop(0) if faults else None
        try:
            log = self._led(*key, batch.leader_epoch)
            if isinstance(fault, errors.FencepostError) and not fault.may_have_been_appended:
                raise fault
            header = check_produced(batch.records)
            if len(batch.records) > self.cluster.max_message_bytes:
                raise errors.MessageTooLarge(f"{len(batch.records)} bytes")
            state = self.cluster.states[key]
            if header.idempotent:
                known = state.check(
                    header,
                    ever_held_records=log.end_offset > 0,
                    fence_epoch=self.cluster.fences.get(header.producer_id, 0),
                )
                if isinstance(known, Duplicate):
                    self.cluster.recognised += 1
                    result.base_offset, result.duplicate = known.base_offset, True
            if not result.duplicate:
                result.base_offset = log.end_offset
                if header.idempotent:
                    state.record(header, log.end_offset)
                log.append(batch.records, batch.leader_epoch)
                self.cluster.batches_appended += 1
            if isinstance(fault, errors.FencepostError):
                raise fault
        except errors.FencepostError as error:
            result.base_offset = -1
            result.error.CopyFrom(errors.to_proto(error))
        return fault if isinstance(fault, str) else result

    async def InitProducerId(self, request: Any, context: Any) -> pb.InitProducerIdResponse:
        await self.awake.wait()
        self.inits.append(request)
        cluster = self.cluster
        if cluster.init_faults:
            return pb.InitProducerIdResponse(error=errors.to_proto(cluster.init_faults.pop(0)))
        await cluster.initializing.wait()
        if not request.name:
            cluster.next_id += 1
            return pb.InitProducerIdResponse(producer_id=cluster.next_id, producer_epoch=cluster.first_epoch)
        held = cluster.named.get(request.name)
        if held is None:
            cluster.next_id += 1
            held = (cluster.next_id, -1)
        elif request.producer_id >= 0 and (request.producer_id, request.producer_epoch) != held:
            return pb.InitProducerIdResponse(error=errors.to_proto(errors.ProducerFenced("another instance")))
        cluster.named[request.name] = new = (held[0], held[1] + 1)
        cluster.fences[new[0]] = new[1]
        return pb.InitProducerIdResponse(producer_id=new[0], producer_epoch=new[1])

    async def DescribeProducers(self, request: Any, context: Any) -> pb.DescribeProducersResponse:
        state = self.cluster.states[request.topic_id, request.partition]
        return pb.DescribeProducersResponse(producers=describe(state, request.producer_id))


class FakeWriteCluster(FakeCluster):
    def __init__(self, brokers: int) -> None:
        super().__init__(brokers, "cluster-a")
        self.writers = {broker_id: FakeWriteBroker(self, broker_id) for broker_id in range(1, brokers + 1)}
        self.brokers = dict(self.writers)
        self.states: dict[PartitionKey, ProducerState] = defaultdict(ProducerState)
        self.faults: dict[PartitionKey, list[Fault]] = defaultdict(list)  # one for each batch that comes
        self.init_faults: list[errors.FencepostError] = []
        self.answering = asyncio.Event()
        self.answering.set()
        self.initializing = asyncio.Event()
        self.initializing.set()
        self.reverse_answers = False
        self.max_message_bytes = 4 * 1024 * 1024
        self.next_id = 100
        self.first_epoch = 0
        self.named: dict[str, tuple[int, int]] = {}
        self.fences: dict[int, int] = {}
        self.recognised = 0
        self.batches_appended = 0

    def records(self, key: PartitionKey) -> list[Record]:
        return [record for _, batch in self.logs[key].batches for record in read_records(batch)]

    def values(self, key: PartitionKey) -> list[bytes]:
        return [record.value or b"" for record in self.records(key)]

    def leader_of(self, key: PartitionKey) -> FakeWriteBroker:
        return self.writers[self.image.partitions[key].leader]


@asynccontextmanager
async def fake_write_cluster(brokers: int = 3) -> AsyncIterator[FakeWriteCluster]:
    cluster = FakeWriteCluster(brokers)
    try:
        await cluster.start()
        yield cluster
    finally:
        cluster.answering.set()
        await cluster.stop()
