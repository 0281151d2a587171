"""kafka-python."""

from __future__ import annotations

import sys

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.consumer.subscription_state import ConsumerRebalanceListener

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
    producer = KafkaProducer(
        bootstrap_servers=bootstrap.split(","),
        enable_idempotence=True,
        acks="all",
        linger_ms=5,
        delivery_timeout_ms=DELIVERY_MS,
    )
    for record_id in paced(count, rate):
        sent_ms = now_ms()
        future = producer.send(topic, key=key_of(record_id), value=value_of(run, record_id))
        future.add_callback(
            lambda sent, record_id=record_id, sent_ms=sent_ms: say(
                "ack", record_id, sent.partition, sent.offset, sent_ms
            )
        )
        future.add_errback(lambda error, record_id=record_id: say("fail", record_id, repr(error)))
    producer.flush(DELIVERY_MS / 1000)
    producer.close()
    say("done")


class SayAssigned(ConsumerRebalanceListener):  # type: ignore[misc]  # untyped where the package is not installed
    def on_partitions_revoked(self, revoked: object) -> None:
        say("revoked")

    def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        say_assigned(place.partition for place in assigned)


def consume(bootstrap: str, topic: str, group: str) -> None:
    ended = until_terminated()
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap.split(","),
        group_id=None if group == "-" else group,
        auto_offset_reset="earliest",
        enable_auto_commit=group != "-",
        auto_commit_interval_ms=500,
        session_timeout_ms=6_000,
        heartbeat_interval_ms=1_000,
        fetch_max_wait_ms=100,
    )
    if group == "-":
        partitions = sorted(consumer.partitions_for_topic(topic))
        consumer.assign([TopicPartition(topic, partition) for partition in partitions])
        consumer.seek_to_beginning()
        say_assigned(partitions)
    else:
        consumer.subscribe([topic], listener=SayAssigned())
    while not ended.is_set():
        for records in consumer.poll(timeout_ms=100).values():
            for record in records:
                say_record(record.partition, record.offset, record.key, record.value)
    consumer.close()
    say("done")


def admin(bootstrap: str, topic: str, partitions: int) -> None:
    client = KafkaAdminClient(bootstrap_servers=bootstrap.split(","))
    client.create_topics([NewTopic(topic, partitions, -1)])
    (described,) = client.describe_topics([topic])
    say("topic", topic, len(described["partitions"]))
    client.close()
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
