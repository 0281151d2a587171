"""One member of a consumer group, as a process: `group_member.py CLIENT BOOTSTRAP GROUP`.

It writes a line of JSON for each record, after that commits, and ends on SIGTERM by leaving the group. What is killed has
not committed the last records that it wrote lines for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable

TOPIC = "orders"
SESSION_MS = 3_000
HEARTBEAT_MS = 300


class Stopped(Exception):  # no error
    """SIGTERM has come."""


def stop(*_: object) -> None:
    raise Stopped


def say(partition: int | None, offset: int | None, value: bytes | None) -> None:
    assert value is not None
    sys.stdout.write(json.dumps([partition, offset, value.decode()]) + "\n")
    sys.stdout.flush()


CLASSIC: dict[str, str | int | bool] = {"session.timeout.ms": SESSION_MS, "heartbeat.interval.ms": HEARTBEAT_MS}


def with_confluent(bootstrap: str, group: str, protocol: dict[str, str | int | bool] = CLASSIC) -> None:
    from confluent_kafka import Consumer, KafkaException

    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "log_level": 2,
            **protocol,
        }
    )
    consumer.subscribe([TOPIC])
    try:
        while True:
            messages = consumer.consume(50, 0.2)
            for message in messages:
                if message.error() is None:
                    say(message.partition(), message.offset(), message.value())
            if any(message.error() is None for message in messages):
                try:
                    consumer.commit(asynchronous=False)
                except KafkaException as error:  # of a generation that is over, or a coordinator that is away
                    print(error, file=sys.stderr)
    finally:
        consumer.close()


def with_kip_848(bootstrap: str, group: str) -> None:
    with_confluent(bootstrap, group, {"group.protocol": "consumer"})


def with_kafka_python(bootstrap: str, group: str) -> None:
    import kafka
    from kafka.errors import KafkaError

    consumer = kafka.KafkaConsumer(
        TOPIC,
        bootstrap_servers=bootstrap.split(","),
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        session_timeout_ms=SESSION_MS,
        heartbeat_interval_ms=HEARTBEAT_MS,
    )
    try:
        while True:
            found = consumer.poll(200, 50)
            for messages in found.values():
                for message in messages:
                    say(message.partition, message.offset, message.value)
            if found:
                try:
                    consumer.commit()
                except KafkaError as error:
                    print(error, file=sys.stderr)
    finally:
        consumer.close()


def with_aiokafka(bootstrap: str, group: str) -> None:
    import aiokafka
    from aiokafka.errors import KafkaError

    async def consume() -> None:
        consumer = aiokafka.AIOKafkaConsumer(
            TOPIC,
            bootstrap_servers=bootstrap,
            group_id=group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
        )
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        await consumer.start()
        try:
            while not stopped.is_set():
                found = await consumer.getmany(timeout_ms=200, max_records=50)
                for messages in found.values():
                    for message in messages:
                        say(message.partition, message.offset, message.value)
                if found:
                    try:
                        await consumer.commit()
                    except KafkaError as error:
                        print(error, file=sys.stderr)
        finally:
            await consumer.stop()

    asyncio.run(consume())


def with_fencepost(bootstrap: str, group: str) -> None:
    import fencepost
    from fencepost.errors import PartitionLost

    async def consume() -> None:
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        async with fencepost.Consumer(bootstrap, TOPIC, group=group, auto_commit_ms=None) as consumer:
            while not stopped.is_set():
                records = await consumer.poll(50, timeout_ms=200)
                for record in records:
                    say(record.partition, record.offset, record.value)
                if records:
                    try:
                        await consumer.commit()
                    except PartitionLost as error:
                        print(error, file=sys.stderr)

    asyncio.run(consume())


CLIENTS: dict[str, Callable[[str, str], None]] = {
    "confluent-kafka": with_confluent,
    "confluent-kafka, KIP-848": with_kip_848,
    "kafka-python": with_kafka_python,
    "aiokafka": with_aiokafka,
    "fencepost": with_fencepost,
}

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    with contextlib.suppress(Stopped):
        CLIENTS[sys.argv[1]](*sys.argv[2:])
