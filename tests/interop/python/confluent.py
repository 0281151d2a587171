"""confluent-kafka (librdkafka)."""

from __future__ import annotations

import functools
import sys

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.interop.python.lines import (
    key_of,
    now_ms,
    paced,
    say,
    say_assigned,
    say_record,
    until_terminated,
    value_of,
)

DELIVERY_MS = 120_000


def produce(bootstrap: str, topic: str, run: str, count: int, rate: float) -> None:
    def on_error(error: KafkaError) -> None:
        if error.fatal():
            say("fatal", error)

    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "linger.ms": 5,
            "message.timeout.ms": DELIVERY_MS,
            "error_cb": on_error,
        }
    )

    def delivered(record_id: int, sent_ms: int, error: KafkaError | None, message: Message) -> None:
        if error is None:
            say("ack", record_id, message.partition(), message.offset(), sent_ms)
        else:
            say("fail", record_id, error)

    for record_id in paced(count, rate, lambda: producer.poll(0)):
        sent_ms = now_ms()
        producer.produce(
            topic,
            key=key_of(record_id),
            value=value_of(run, record_id),
            on_delivery=functools.partial(delivered, record_id, sent_ms),
        )
        producer.poll(0)
    producer.flush(DELIVERY_MS / 1000)
    say("done")


def consume(bootstrap: str, topic: str, group: str) -> None:
    ended = until_terminated()
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "enable.auto.commit": group != "-",
            "auto.commit.interval.ms": 500,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 6_000,
            "fetch.wait.max.ms": 100,
        }
    )
    if group == "-":
        partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        say_assigned(partitions)
    else:
        consumer.subscribe([topic], on_assign=lambda _, given: say_assigned(place.partition for place in given))
    while not ended.is_set():
        message = consumer.poll(0.1)
        if message is None:
            continue
        error, partition, offset = message.error(), message.partition(), message.offset()
        if error is None and partition is not None and offset is not None:
            say_record(partition, offset, message.key(), message.value())
        elif error is not None and error.fatal():
            say("fatal", error)
    consumer.close()
    say("done")


def admin(bootstrap: str, topic: str, partitions: int) -> None:
    client = AdminClient({"bootstrap.servers": bootstrap})
    for made in client.create_topics([NewTopic(topic, partitions)]).values():
        made.result(30)
    described = client.list_topics(timeout=30).topics[topic]
    say("topic", described.topic, len(described.partitions))
    say("done")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["produce", bootstrap, topic, run, count, rate]:
            produce(bootstrap, topic, run, int(count), float(rate))
        case ["consume", bootstrap, topic, group]:
            consume(bootstrap, topic, group)
        case ["admin", bootstrap, topic, partitions]:
            admin(bootstrap, topic, int(partitions))
        case other:
            sys.exit(f"unknown arguments {other}")
