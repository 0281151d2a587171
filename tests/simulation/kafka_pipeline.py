"""A producer that behaves like librdkafka, small enough to be read: it is what promise G14 is about.

Idempotent, with five batches on their way to each partition, sent in the order of their numbers, and again in that order
after a retriable refusal or a broken connection. A success says that all batches before it are in, too. Any other refusal,
such as OUT_OF_ORDER_SEQUENCE_NUMBER after an unclean election, is noted, and judged: it gives up what is open in that
partition, and goes on under a new id.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fencepost_node.kafka.frames import FrameReader
from fencepost_proto.kafka.codec import decode_response, encode_request
from fencepost_proto.kafka.messages.init_producer_id import InitProducerIdRequest
from fencepost_proto.kafka.messages.metadata import MetadataRequest, MetadataRequestTopic
from fencepost_proto.kafka.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.records import BatchBuilder, Compression
from fencepost_proto.transport.streams import connect

IN_FLIGHT = 5
RETRY_S = 0.1
ANSWER_TIMEOUT_S = 5.0
_VERSIONS = {0: 12, 3: 9, 22: 4}
MAX_FRAME_BYTES = 1 << 30

RETRIABLE = frozenset(
    {
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.LEADER_NOT_AVAILABLE,
        ErrorCode.NOT_LEADER_OR_FOLLOWER,
        ErrorCode.REQUEST_TIMED_OUT,
        ErrorCode.NOT_ENOUGH_REPLICAS,
        ErrorCode.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        ErrorCode.KAFKA_STORAGE_ERROR,
    }
)

# Value, partition, offset (-1: a later batch says that it is in; None: given up, and perhaps in).
Settle = Callable[[bytes, int, int | None], None]


class Connection(asyncio.Protocol):
    """Requests whose answers come in order; `lost` resolves when it has gone."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader = FrameReader(MAX_FRAME_BYTES)
        self._waiting: deque[tuple[int, int, Callable[[Any], None]]] = deque()
        self._asked = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for frame in self._reader.feed(data):
            key, correlation_id, take = self._waiting.popleft()
            got, response = decode_response(key, _VERSIONS[key], frame)
            assert got == correlation_id
            take(response)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    def ask(self, key: int, message: object, take: Callable[[Any], None]) -> None:
        self._asked += 1
        self._waiting.append((key, self._asked, take))
        self.transport.writelines(encode_request(key, _VERSIONS[key], self._asked, "pipeline", message))

    async def answer(self, key: int, message: object) -> Any:
        """Raises ConnectionError, TimeoutError."""
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def take(response: Any) -> None:
            if not answered.done():
                answered.set_result(response)

        self.ask(key, message, take)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await _first_of(answered, self.lost)
        if not answered.done():
            raise ConnectionError("the connection broke before the answer")
        return answered.result()


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


@dataclass(slots=True)
class _Batch:
    sequence: int
    values: list[bytes]
    sent_ms: int
    records: bytes = b""  # as it was sent at first: under what id is known then
    on_its_way: bool = False


@dataclass(slots=True)
class _Partition:
    index: int
    producer_id: int = -1
    next_sequence: int = 0
    open: deque[_Batch] = field(default_factory=deque)  # not acknowledged, in the order of their numbers
    connection: Connection | None = None
    leader: int = -1
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class PipelinedProducer:
    """Of one topic."""

    def __init__(self, bootstrap: list[str], topic: str, partitions: int, settle: Settle, now_ms: Callable[[], int]):
        self.problems: list[tuple[int, str]] = []  # partition, and what it was told
        self._bootstrap = bootstrap
        self._topic = topic
        self._settle = settle
        self._now_ms = now_ms
        self._partitions = [_Partition(index) for index in range(partitions)]
        self._closed = asyncio.Event()  # some that were open are not any more
        self._connections: dict[str, Connection] = {}
        self._leaders: dict[int, str] = {}  # by partition: the address

    @property
    def open_records(self) -> int:
        return sum(len(batch.values) for partition in self._partitions for batch in partition.open)

    def send(self, partition: int, values: list[bytes]) -> None:
        """One batch."""
        place = self._partitions[partition]
        place.open.append(_Batch(place.next_sequence, values, self._now_ms()))
        place.next_sequence += len(values)
        place.wake.set()

    async def fewer_than(self, records: int) -> None:
        """Wait until fewer are open."""
        while self.open_records >= records:
            self._closed.clear()
            await self._closed.wait()

    async def start(self) -> None:
        """Get an id, and begin to send."""
        producer_id = await self._new_id()
        for partition in self._partitions:
            partition.producer_id = producer_id
        loop = asyncio.get_running_loop()
        self.tasks = [loop.create_task(self._serve(partition)) for partition in self._partitions]

    async def _new_id(self) -> int:
        while True:
            for address in self._bootstrap:
                try:
                    connection = await self._connected(address)
                    answer = await connection.answer(22, InitProducerIdRequest(transactional_id=None))
                except (OSError, TimeoutError):
                    continue
                if not answer.error_code:
                    return int(answer.producer_id)
            await asyncio.sleep(RETRY_S)

    async def _connected(self, address: str) -> Connection:
        """Raises OSError, TimeoutError."""
        connection = self._connections.get(address)
        if connection is None or connection.lost.done():
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                _, connection = await connect(address, Connection)
            self._connections[address] = connection
        return connection

    async def _serve(self, partition: _Partition) -> None:
        """Send what is open, in order, to whoever leads."""
        while True:
            if partition.producer_id < 0:
                partition.producer_id = await self._new_id()
            try:
                address = self._leaders.get(partition.index) or await self._look_for_leader(partition.index)
                connection = await self._connected(address)
                await self._send_over(partition, connection)
            except (OSError, TimeoutError):
                pass
            self._leaders.pop(partition.index, None)
            await asyncio.sleep(RETRY_S)

    async def _look_for_leader(self, partition: int) -> str:
        """Raises OSError, TimeoutError."""
        for address in self._bootstrap:
            try:
                connection = await self._connected(address)
                request = MetadataRequest(topics=[MetadataRequestTopic(name=self._topic)])
                answer = await connection.answer(3, request)
            except (OSError, TimeoutError):
                continue
            brokers = {broker.node_id: f"{broker.host}:{broker.port}" for broker in answer.brokers}
            for found in answer.topics[0].partitions:
                if found.partition_index == partition and found.leader_id in brokers:
                    self._leaders[partition] = brokers[found.leader_id]
                    return self._leaders[partition]
        raise ConnectionError(f"no broker knows a leader of {self._topic}-{partition}")

    async def _send_over(self, partition: _Partition, connection: Connection) -> None:
        """Until the connection breaks, or the broker does not lead any more and all of its answers are there."""
        for batch in partition.open:
            batch.on_its_way = False
        moved = False

        def answered(batch: _Batch, response: Any) -> None:
            nonlocal moved
            batch.on_its_way = False
            (answer,) = response.responses[0].partition_responses
            moved |= self._take(partition, batch, answer)
            partition.wake.set()

        while not connection.lost.done():
            on_its_way = sum(batch.on_its_way for batch in partition.open)
            if moved and not on_its_way:
                return
            for batch in list(partition.open) if not moved else ():
                if batch.on_its_way:
                    continue
                if on_its_way >= IN_FLIGHT:
                    break
                batch.on_its_way, on_its_way = True, on_its_way + 1
                batch.records = batch.records or self._encoded(batch, partition.producer_id)
                data = [PartitionProduceData(index=partition.index, records=batch.records)]
                request = ProduceRequest(
                    acks=-1, timeout_ms=30_000, topic_data=[TopicProduceData(name=self._topic, partition_data=data)]
                )
                connection.ask(0, request, partial(answered, batch))
            partition.wake.clear()
            waiting = asyncio.get_running_loop().create_task(partition.wake.wait())
            await _first_of(waiting, connection.lost)
            waiting.cancel()

    def _encoded(self, batch: _Batch, producer_id: int) -> bytes:
        builder = BatchBuilder(Compression.NONE, 1 << 20)
        for value in batch.values:
            builder.append(batch.sent_ms, None, value, [])
        return builder.build(producer_id, 0, batch.sequence)

    def _take(self, partition: _Partition, batch: _Batch, answer: Any) -> bool:
        """Whether it is time to look for another leader."""
        if batch not in partition.open:
            return False  # a later one has said that it is in
        if not answer.error_code:
            self._closed.set()
            while partition.open[0] is not batch:
                for value in partition.open.popleft().values:
                    self._settle(value, partition.index, -1)
            for number, value in enumerate(partition.open.popleft().values):
                self._settle(value, partition.index, answer.base_offset + number)
            return False
        if answer.error_code not in RETRIABLE:
            self.problems.append((partition.index, f"{ErrorCode(answer.error_code).name}: {answer.error_message}"))
            for value in (value for given_up in partition.open for value in given_up.values):
                self._settle(value, partition.index, None)
            partition.open.clear()
            partition.producer_id, partition.next_sequence = -1, 0
            self._closed.set()
        return True
