"""kafka-python."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import KafkaProducer as Producer
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.errors import CommitFailedError, KafkaError

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


class KafkaPythonProducer(KafkaProducer):
    async def _start(self) -> None:
        def start() -> Producer:
            return Producer(
                bootstrap_servers=self._bootstrap.split(","),
                enable_idempotence=True,
                linger_ms=LINGER_MS,
                delivery_timeout_ms=int(DELIVERY_TIMEOUT_S * 1000),
            )

        try:
            self._producer = await asyncio.to_thread(start)
        except KafkaError as error:
            raise CommandFailed(f"kafka-python cannot start: {error!r}") from error

    async def _hand_over(
        self, topic: str, key: bytes | None, value: bytes, outcome: asyncio.Future[RecordMetadata]
    ) -> None:
        try:  # in a thread: it waits where the metadata is missing or the buffer is full
            sent = await asyncio.to_thread(self._producer.send, topic, value=value, key=key)
        except KafkaError as error:
            self.fail(outcome, error)
            return
        sent.add_callback(
            lambda place: self._loop.call_soon_threadsafe(
                self.acknowledge, outcome, place.topic, place.partition, place.offset
            )
        )
        sent.add_errback(lambda error: self._loop.call_soon_threadsafe(self.fail, outcome, error))

    async def _stop(self) -> None:
        await asyncio.to_thread(self._producer.close, DELIVERY_TIMEOUT_S)


class _Assignments(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """`fresh`: partitions that were assigned, and are paused until their positions are what the group has committed.

    kafka-python 3.0.12 keeps the position of a partition that it had before and has again, also where it has missed a
    generation in between, in which another member read and committed.
    """

    def __init__(self, reader: KafkaPythonReader, consumer: Any) -> None:
        self.fresh: set[TopicPartition] = set()
        self._reader = reader
        self._consumer = consumer

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self.fresh.clear()
        self._reader.revoked(each.partition for each in revoked)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self.fresh = set(assigned)
        self._consumer.pause(*self.fresh)
        self._reader.assigned(each.partition for each in self.fresh)


class KafkaPythonReader(KafkaReader):
    """A consumer of kafka-python belongs to one thread: it has one of its own."""

    async def _start(self) -> None:
        self._thread = ThreadPoolExecutor(1, "kafka-python")

        def start() -> Any:
            consumer = KafkaConsumer(
                bootstrap_servers=self._bootstrap.split(","),
                group_id=self._group,
                auto_offset_reset=self._offset_reset,
                enable_auto_commit=not self._commits,
                auto_commit_interval_ms=COMMIT_INTERVAL_MS,
                session_timeout_ms=SESSION_TIMEOUT_MS,
                heartbeat_interval_ms=SESSION_TIMEOUT_MS // 6,
                max_poll_records=MAX_POLL_RECORDS,
            )
            self._assignments = _Assignments(self, consumer)
            consumer.subscribe([self._topic], listener=self._assignments)
            return consumer

        try:
            self._consumer = await asyncio.get_running_loop().run_in_executor(self._thread, start)
        except KafkaError as error:
            raise CommandFailed(f"kafka-python cannot start: {error!r}") from error

    async def _poll(self) -> list[KafkaRecord]:
        def poll() -> Any:
            for partition in list(self._assignments.fresh):
                self._begin_at_committed(partition)
            return self._consumer.poll(timeout_ms=POLL_MS)

        try:
            polled = await asyncio.get_running_loop().run_in_executor(self._thread, poll)
        except KafkaError as error:  # where no broker can be reached
            raise CommandFailed(f"kafka-python cannot read {self._topic}: {error!r}") from error
        return records_of(self._topic, polled)

    def _begin_at_committed(self, partition: TopicPartition) -> None:
        committed = self._consumer.committed(partition)
        with contextlib.suppress(KeyError, ValueError):  # taken away meanwhile
            if committed is not None:
                self._consumer.seek(partition, committed)
            self._consumer.resume(partition)
        self._assignments.fresh.discard(partition)

    async def _commit(self, offsets: dict[int, int]) -> None:
        wanted = {
            TopicPartition(self._topic, partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in offsets.items()
        }
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._consumer.commit, wanted)
        except KafkaError as error:
            raise CommitFailed(repr(error), certain=isinstance(error, CommitFailedError)) from error

    async def _stop(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._consumer.close)
        self._thread.shutdown(wait=False)
