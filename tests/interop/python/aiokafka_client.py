"""aiokafka."""

from __future__ import annotations

import asyncio
import sys
import time

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.interop.python.lines import (
    key_of,
    now_ms,
    say,
    say_assigned,
    say_record,
    until_terminated_async,
    value_of,
)

DELIVERY_MS = 120_000  # aiokafka gives up on a batch when its request timeout is over


async def produce(bootstrap: str, topic: str, run: str, count: int, rate: float) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, enable_idempotence=True, linger_ms=5, request_timeout_ms=DELIVERY_MS
    )
    await producer.start()
    started = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for record_id in range(count):
            await asyncio.sleep(max(0.0, started + record_id / rate - time.monotonic()))
            sent_ms = now_ms()
            delivery = await producer.send(topic, key=key_of(record_id), value=value_of(run, record_id))
            tasks.create_task(_settle(delivery, record_id, sent_ms))
    await producer.stop()
    say("done")


async def _settle(delivery: asyncio.Future[object], record_id: int, sent_ms: int) -> None:
    try:
        sent = await delivery
    except Exception as error:  # noqa: BLE001 - whatever it is, the runner judges it
        say("fail", record_id, repr(error))
    else:
        say("ack", record_id, sent.partition, sent.offset, sent_ms)  # type: ignore[attr-defined]


class SayAssigned(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    def on_partitions_revoked(self, revoked: object) -> None:
        say("revoked")

    def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        say_assigned(place.partition for place in assigned)


async def consume(bootstrap: str, topic: str, group: str) -> None:
    ended = until_terminated_async()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=None if group == "-" else group,
        auto_offset_reset="earliest",
        enable_auto_commit=group != "-",
        auto_commit_interval_ms=500,
        session_timeout_ms=6_000,
        heartbeat_interval_ms=1_000,
        fetch_max_wait_ms=100,
    )
    if group == "-":
        await consumer.start()
        partitions = await _partitions(consumer, topic)
        consumer.assign([TopicPartition(topic, partition) for partition in partitions])
        await consumer.seek_to_beginning()
        say_assigned(partitions)
    else:
        consumer.subscribe([topic], listener=SayAssigned())
        await consumer.start()
    while not ended.is_set():
        for records in (await consumer.getmany(timeout_ms=100)).values():
            for record in records:
                say_record(record.partition, record.offset, record.key, record.value)
    await consumer.stop()
    say("done")


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> list[int]:
    consumer._client.add_topic(topic)
    await consumer._client.force_metadata_update()
    return sorted(consumer.partitions_for_topic(topic))


async def admin(bootstrap: str, topic: str, partitions: int) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await client.start()
    await client.create_topics([NewTopic(topic, partitions, 3)])
    (described,) = await client.describe_topics([topic])
    say("topic", topic, len(described["partitions"]))
    await client.close()
    say("done")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["produce", bootstrap, topic, run, count, rate]:
            asyncio.run(produce(bootstrap, topic, run, int(count), float(rate)))
        case ["consume", bootstrap, topic, group]:
            asyncio.run(consume(bootstrap, topic, group))
        case ["admin", bootstrap, topic, partitions]:
            asyncio.run(admin(bootstrap, topic, int(partitions)))
        case other:
            sys.exit(f"unknown arguments {other}")
