"""confluent-kafka (librdkafka)."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from fencepost import RecordMetadata
from fencepost.history import History
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
)

_NOT_STORED = {  # by a commit with one of these for an answer
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_MEMBER_EPOCH,
}
_SERVE_S = 0.1
_FULL_PAUSE_S = 0.01


class ConfluentProducer(KafkaProducer):
    """Its callbacks are served by a thread of ours."""

    def __init__(self, bootstrap: str, history: History | None) -> None:
        super().__init__(bootstrap, history)
        self._ended = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": LINGER_MS,
                "message.timeout.ms": int(DELIVERY_TIMEOUT_S * 1000),
            }
        )
        self._server = threading.Thread(target=self._serve, name="confluent-kafka callbacks", daemon=True)

    async def _start(self) -> None:
        self._server.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            self._producer.poll(_SERVE_S)

    async def _hand_over(
        self, topic: str, key: bytes | None, value: bytes, outcome: asyncio.Future[RecordMetadata]
    ) -> None:
        while True:
            try:
                self._producer.produce(topic, value=value, key=key, on_delivery=partial(self._delivered, outcome))
                return
            except BufferError:
                await asyncio.sleep(_FULL_PAUSE_S)

    def _delivered(self, outcome: asyncio.Future[RecordMetadata], error: KafkaError | None, message: Message) -> None:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if error is not None or topic is None or partition is None or offset is None:
            self._loop.call_soon_threadsafe(self.fail, outcome, error)
        else:
            self._loop.call_soon_threadsafe(self.acknowledge, outcome, topic, partition, offset)

    async def _stop(self) -> None:
        await asyncio.to_thread(self._producer.flush, DELIVERY_TIMEOUT_S)
        self._ended.set()
        await asyncio.to_thread(self._server.join)


class ConfluentReader(KafkaReader):
    async def _start(self) -> None:
        protocol: dict[str, str | int] = {"session.timeout.ms": SESSION_TIMEOUT_MS}
        if self._kip_848:
            protocol = {"group.protocol": "consumer"}
        self._consumer = Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": self._group,
                "auto.offset.reset": self._offset_reset,
                "enable.auto.commit": not self._commits,
                "auto.commit.interval.ms": COMMIT_INTERVAL_MS,
                **protocol,
            }
        )
        self._consumer.subscribe(
            [self._topic],
            on_assign=lambda _, partitions: self.assigned(each.partition for each in partitions),
            on_revoke=lambda _, partitions: self.revoked(each.partition for each in partitions),
        )

    async def _poll(self) -> list[KafkaRecord]:
        try:
            messages = await asyncio.to_thread(self._consumer.consume, MAX_POLL_RECORDS, POLL_MS / 1000)
        except KafkaException as error:
            raise CommandFailed(f"confluent-kafka cannot read {self._topic}: {error}") from error
        return [record for message in messages if (record := self._record_of(message)) is not None]

    def _record_of(self, message: Message) -> KafkaRecord | None:
        error = message.error()
        if error is not None:
            if error.fatal():
                raise CommandFailed(f"confluent-kafka cannot read {self._topic}: {error}")
            return None  # it tries again by itself
        partition, offset = message.partition(), message.offset()
        assert partition is not None  # it is a record
        assert offset is not None
        key, value = message.key(), message.value()
        return KafkaRecord(self._topic, partition, offset, _bytes(key), _bytes(value))

    async def _commit(self, offsets: dict[int, int]) -> None:
        wanted = [TopicPartition(self._topic, partition, offset) for partition, offset in offsets.items()]
        try:
            stored = await asyncio.to_thread(self._consumer.commit, offsets=wanted, asynchronous=False)
        except KafkaException as error:
            code = error.args[0].code() if isinstance(error.args[0], KafkaError) else None
            raise CommitFailed(str(error), certain=code in _NOT_STORED) from error
        failed = [each for each in stored or () if each.error is not None]
        if failed:
            certain = all(each.error is not None and each.error.code() in _NOT_STORED for each in failed)
            raise CommitFailed(f"{failed[0]}", certain=certain and len(failed) == len(wanted))

    async def _stop(self) -> None:
        await asyncio.to_thread(self._consumer.close)


def _bytes(data: str | bytes | None) -> bytes | None:
    return data.encode() if isinstance(data, str) else data
