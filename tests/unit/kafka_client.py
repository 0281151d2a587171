"""A client of Kafka's protocol for tests: sends requests, and reads the answers one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fencepost_proto.kafka.apis import APIS
from fencepost_proto.kafka.codec import decode_response, encode_request
from fencepost_proto.kafka.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from fencepost_proto.kafka.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from fencepost_proto.transport.streams import split_address

ANSWER_TIMEOUT_S = 10.0
PATIENCE_MS = 5_000  # of requests that do not say how long the broker may take


class KafkaClient:
    """One connection. Correlation ids count from 1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._asked: list[tuple[int, int]] = []  # key and version, by correlation id
        self._answered = 0

    def send(self, message: Any, version: int | None = None) -> None:
        api = next(api for api in APIS.values() if api.request is type(message))
        version = api.max_version if version is None else version
        if getattr(message, "timeout_ms", None) == 0:
            message = replace(message, timeout_ms=PATIENCE_MS)
        self._asked.append((api.key, version))
        for chunk in encode_request(api.key, version, len(self._asked), "test", message):
            self.writer.write(chunk)

    async def receive(self) -> Any:
        """The next answer, which has to be that of the oldest request that has none."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            size = int.from_bytes(await self.reader.readexactly(4), "big")
            frame = await self.reader.readexactly(size)
        key, version = self._asked[self._answered]
        self._answered += 1
        correlation_id, message = decode_response(key, version, memoryview(frame))
        assert correlation_id == self._answered
        return message

    async def ask(self, message: object, version: int | None = None) -> Any:
        self.send(message, version)
        return await self.receive()

    async def closed(self) -> bytes:
        """Return what still came once the other side has closed the connection."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def kafka_client(address: str) -> AsyncIterator[KafkaClient]:
    reader, writer = await asyncio.open_connection(*split_address(address))
    try:
        yield KafkaClient(reader, writer)
    finally:
        writer.close()


def produce_request(
    *records: bytes | None, topic: str = "orders", topic_id: bytes = bytes(16), acks: int = -1, **options: Any
) -> ProduceRequest:
    """One batch for each partition, from 0 on."""
    data = [PartitionProduceData(index=index, records=batch) for index, batch in enumerate(records)]
    return ProduceRequest(
        acks=acks,
        timeout_ms=5_000,
        topic_data=[TopicProduceData(name=topic, topic_id=topic_id, partition_data=data)],
        **options,
    )


def fetch_request(
    *offsets: int, topic: str = "orders", topic_id: bytes = bytes(16), max_bytes: int = 1 << 20, **options: Any
) -> FetchRequest:
    """One position for each partition, from 0 on."""
    partitions = [
        FetchPartition(partition=index, fetch_offset=offset, partition_max_bytes=max_bytes)
        for index, offset in enumerate(offsets)
    ]
    values: dict[str, Any] = {"max_wait_ms": 0, "min_bytes": 1, "max_bytes": 1 << 24, **options}
    return FetchRequest(topics=[FetchTopic(topic=topic, topic_id=topic_id, partitions=partitions)], **values)


def only(response: Any) -> Any:
    """The one partition of a Produce or Fetch response."""
    (topic,) = response.responses
    (partition,) = topic.partition_responses if hasattr(topic, "partition_responses") else topic.partitions
    return partition
