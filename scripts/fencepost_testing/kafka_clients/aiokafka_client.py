"""aiokafka."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from fencepost import RecordMetadata
from fencepost_testing.failures import CommandFailed
from fencepost_testing.kafka_clients.producer import DELIVERY_TIMEOUT_S, LINGER_MS, KafkaProducer
from fencepost_testing.kafka_clients.reader import (
    COMMIT_INTERVAL_MS,
    MAX_POLL_RECORDS,
    POLL_MS,
    SESSION_TIMEOUT_MS,
    CommitFailed,
    KafkaReader,
    KafkaRecord,
    records_of,
)


class AiokafkaProducer(KafkaProducer):
    async def _start(self) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            enable_idempotence=True,
            linger_ms=LINGER_MS,
            request_timeout_ms=int(DELIVERY_TIMEOUT_S * 1000),  # aiokafka gives a batch up when that is over
        )
        try:
            await self._producer.start()
        except KafkaError as error:
            raise CommandFailed(f"aiokafka cannot start: {error!r}") from error

    async def _hand_over(
        self, topic: str, key: bytes | None, value: bytes, outcome: asyncio.Future[RecordMetadata]
    ) -> None:
        try:
            sent = await self._producer.send(topic, value, key=key)
        except KafkaError as error:
            self.fail(outcome, error)
            return
        sent.add_done_callback(lambda done: self._done(outcome, done))

    def _done(self, outcome: asyncio.Future[RecordMetadata], done: asyncio.Future[RecordMetadata]) -> None:
        if done.cancelled():
            self.fail(outcome, "it was cancelled")
        elif error := done.exception():
            self.fail(outcome, error)
        else:
            place = done.result()
            self.acknowledge(outcome, place.topic, place.partition, place.offset)

    async def _stop(self) -> None:
        await self._producer.stop()


class _Assigned(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    def __init__(self, reader: AiokafkaReader) -> None:
        self._reader = reader

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._reader.revoked(each.partition for each in revoked)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._reader.assigned(each.partition for each in assigned)


class AiokafkaReader(KafkaReader):
    async def _start(self) -> None:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=self._group,
            auto_offset_reset=self._offset_reset,
            enable_auto_commit=not self._commits,
            auto_commit_interval_ms=COMMIT_INTERVAL_MS,
            partition_assignment_strategy=[RangePartitionAssignor],
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=SESSION_TIMEOUT_MS // 6,
        )
        self._consumer.subscribe([self._topic], listener=_Assigned(self))
        try:
            await self._consumer.start()
        except KafkaError as error:
            raise CommandFailed(f"aiokafka cannot start: {error!r}") from error

    async def _poll(self) -> list[KafkaRecord]:
        try:
            polled = await self._consumer.getmany(timeout_ms=POLL_MS, max_records=MAX_POLL_RECORDS)
        except KafkaError as error:
            raise CommandFailed(f"aiokafka cannot read {self._topic}: {error!r}") from error
        return records_of(self._topic, polled)

    async def _commit(self, offsets: dict[int, int]) -> None:
        try:
            await self._consumer.commit({TopicPartition(self._topic, p): offset for p, offset in offsets.items()})
        except (KafkaError, IllegalStateError) as error:
            certain = isinstance(error, CommitFailedError | IllegalStateError)
            raise CommitFailed(repr(error), certain=certain) from error

    async def _stop(self) -> None:
        await self._consumer.stop()
