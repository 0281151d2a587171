"""Administrators' tools that were written for Kafka, unchanged, against real processes: librdkafka's and kafka-python's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

import confluent_kafka
import confluent_kafka.admin as librdkafka
import pytest
from kafka import KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewPartitions, NewTopic
from kafka.errors import (
    InvalidConfigurationError,
    InvalidPartitionsError,
    OffsetOutOfRangeError,
    TopicAlreadyExistsError,
)

from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.waiting import until_sync
from tests.asynchronous import asynchronous

ClusterFactory = Callable[..., AsyncLocalCluster]
TIMEOUT_S = 20.0


def settles(look: Callable[[], Any], expected: Any) -> None:
    """Any broker may be asked, and one may hear of a change a moment after the one that answered it."""
    until_sync(look, f"what is described is {expected!r}", TIMEOUT_S, holds=lambda found: found == expected)


def done(futures: Mapping[Any, Future[Any]]) -> list[Any]:
    """What became of each: its result, or the name of the error that refuses it."""
    wait(futures.values(), TIMEOUT_S)
    outcomes = []
    for future in futures.values():
        error = future.exception(0)
        outcomes.append(error.args[0].name() if isinstance(error, confluent_kafka.KafkaException) else future.result(0))
    return outcomes


def with_librdkafka(bootstrap: str) -> None:
    admin = librdkafka.AdminClient({"bootstrap.servers": bootstrap})
    topics = [
        librdkafka.NewTopic("orders", 2, 3, config={"retention.ms": "60000"}),
        librdkafka.NewTopic("defaults", -1, -1),
        librdkafka.NewTopic("compact", 1, 1, config={"cleanup.policy": "compact"}),
        librdkafka.NewTopic("large", 1, 9),
    ]
    assert done(admin.create_topics(topics)) == [None, None, "INVALID_CONFIG", "INVALID_REPLICATION_FACTOR"]
    assert done(admin.create_topics(topics[:1])) == ["TOPIC_ALREADY_EXISTS"]
    checked = [librdkafka.NewPartitions("orders", 3)]
    assert done(admin.create_partitions(checked, validate_only=True)) == [None]
    more = [librdkafka.NewPartitions("orders", 4), librdkafka.NewPartitions("nope", 4)]
    assert done(admin.create_partitions(more)) == [None, "UNKNOWN_TOPIC_OR_PART"]
    assert done(admin.create_partitions(more[:1])) == ["INVALID_PARTITIONS"]

    def config(*names: str) -> list[tuple[str, bool, bool]]:
        (found,) = done(admin.describe_configs([librdkafka.ConfigResource("topic", "orders")]))
        return [(found[name].value, found[name].is_default, found[name].is_read_only) for name in names]

    settles(lambda: config("retention.ms", "cleanup.policy"), [("60000", False, False), ("delete", True, True)])
    (broker,) = done(admin.describe_configs([librdkafka.ConfigResource("broker", "2")]))
    assert broker["broker_id"].value == "2"
    set_to, delete = librdkafka.AlterConfigOpType.SET, librdkafka.AlterConfigOpType.DELETE

    def alter(name: str, value: str | None, operation: Any = set_to) -> Any:
        entry = librdkafka.ConfigEntry(name, value, incremental_operation=operation)
        resource = librdkafka.ConfigResource("topic", "orders", incremental_configs=[entry])
        return done(admin.incremental_alter_configs([resource]))[0]

    assert alter("min.insync.replicas", "2") is None
    assert alter("retention.ms", None, delete) is None
    settles(lambda: config("min.insync.replicas", "retention.ms"), [("2", False, False), ("604800000", True, False)])
    assert alter("min.insync.replicas", "4") == "INVALID_CONFIG"
    assert alter("nonsense", "4") == "INVALID_CONFIG"

    producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    for _ in range(10):
        producer.produce("orders", b"x", partition=0)
    assert producer.flush(TIMEOUT_S) == 0
    for offset, start in ((4, 4), (2, 4), (99, None), (-1, 10)):
        wanted = [confluent_kafka.TopicPartition("orders", 0, offset)]
        (outcome,) = done(admin.delete_records(wanted))
        assert outcome == "OFFSET_OUT_OF_RANGE" if start is None else outcome.low_watermark == start
    described = admin.describe_cluster(request_timeout=TIMEOUT_S).result(TIMEOUT_S)
    assert sorted(node.id for node in described.nodes) == [1, 2, 3]

    def replicas() -> list[int]:
        (topic,) = done(admin.describe_topics(confluent_kafka.TopicCollection(["orders"])))
        return [len(partition.replicas) for partition in topic.partitions]

    settles(replicas, [3, 3, 3, 3])
    preferred = admin.elect_leaders(
        confluent_kafka.ElectionType.PREFERRED, [confluent_kafka.TopicPartition("orders", 0)]
    ).result(TIMEOUT_S)
    assert [error.name() for error in preferred.values()] == ["ELECTION_NOT_NEEDED"]
    assert done(admin.delete_topics(["orders", "nope"])) == [None, "UNKNOWN_TOPIC_OR_PART"]


def with_kafka_python(bootstrap: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        admin.create_topics([NewTopic("kp", 2, 3, topic_configs={"retention.ms": "60000"})])
        with pytest.raises(TopicAlreadyExistsError):
            admin.create_topics([NewTopic("kp", 2, 3)])
        with pytest.raises(InvalidConfigurationError, match=r"cleanup\.policy='compact' is not supported"):
            admin.create_topics([NewTopic("kc", 2, 3, topic_configs={"cleanup.policy": "compact"})])
        admin.create_topics([NewTopic("checked", 2, 3)], validate_only=True)
        assert "checked" not in admin.list_topics()
        admin.create_partitions({"kp": NewPartitions(4)})
        with pytest.raises(InvalidPartitionsError, match="4 partitions: 2 are not more"):
            admin.create_partitions({"kp": NewPartitions(2)})

        def topic_config(**values: Any) -> ConfigResource:
            return ConfigResource(ConfigResourceType.TOPIC, "kp", **values)

        def retention() -> str:
            found = admin.describe_configs([topic_config(configs=["retention.ms"])])
            return str(found["topic"]["kp"].get("retention.ms", {"value": "default"})["value"])

        settles(retention, "60000")
        assert admin.alter_configs([topic_config(configs={"retention.ms": "70000"})]) == {"topic": {"kp": "OK"}}
        settles(retention, "70000")
        refused = admin.alter_configs([topic_config(configs={"retention.ms": "x"})])
        assert "invalid value 'x' for topic setting retention.ms" in str(refused)
        partition = KafkaPartition("kp", 0)
        producer = KafkaProducer(bootstrap_servers=bootstrap)
        for _ in range(10):
            producer.send("kp", b"x", partition=0).get(TIMEOUT_S)
        assert admin.delete_records({partition: 4})[partition]["low_watermark"] == 4
        with pytest.raises(OffsetOutOfRangeError):
            admin.delete_records({partition: 44})
        assert admin.list_partition_offsets({partition: -2})[partition].offset == 4
        (state,) = admin.describe_producers([partition])[partition].active_producers
        assert state.last_sequence == 9
        producer.close()
        (cluster, logs) = (admin.describe_cluster(), admin.describe_log_dirs())
        assert sorted(broker["broker_id"] for broker in cluster["brokers"]) == [1, 2, 3]
        sizes = [p["partition_size"] for one in logs for t in one["log_dirs"][0]["topics"] for p in t["partitions"]]
        assert sum(size > 0 for size in sizes) == 3
        settles(lambda: len(admin.describe_topic_partitions(["kp"])["topics"][0]["partitions"]), 4)
        assert admin.alter_partition_reassignments({partition: [1, 2]}) == {partition: None}
        admin.delete_topics(["kp"])
        settles(admin.list_topics, [])
    finally:
        admin.close()


@asynchronous
async def test_admin_clients_of_kafka_make_change_describe_and_remove_topics(cluster_factory: ClusterFactory) -> None:
    async with cluster_factory(brokers=3) as cluster:
        await asyncio.to_thread(with_kafka_python, cluster.kafka_bootstrap)
        await asyncio.to_thread(with_librdkafka, cluster.kafka_bootstrap)
