"""The test of ten lines that the README opens with, and what else the shared cluster of the pytest plugin is good for."""

from __future__ import annotations

import confluent_kafka

from fencepost_testing import LocalCluster


def produce_orders(producer: confluent_kafka.Producer, topic: str) -> None:
    for number in range(100):
        producer.produce(topic, f"order {number}", key=str(number))
    assert producer.flush(30) == 0


def test_orders_survive_a_leader_kill(fencepost: LocalCluster) -> None:
    topic = fencepost.create_topic(partitions=3)
    producer = confluent_kafka.Producer({"bootstrap.servers": fencepost.kafka_bootstrap, "enable.idempotence": True})
    with fencepost.faults.drop_answers(api="Produce", topic=topic, times=2) as lost:  # appended, never acknowledged
        produce_orders(producer, topic)
    fencepost.kill(fencepost.leader(topic, 0))
    produce_orders(producer, topic)
    fencepost.check_exactly_once(topic)
    assert lost.fired == 2


def test_the_next_test_finds_the_cluster_as_if_it_were_new(fencepost: LocalCluster) -> None:
    assert fencepost.topics() == []
    assert fencepost.faults.active() == []
    assert all(fencepost.running(node) for node in fencepost.nodes)
