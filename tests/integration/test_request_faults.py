"""Faults on requests, with Fencepost's client and with librdkafka: each happens, as often as was asked, and no more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import confluent_kafka
import confluent_kafka.admin
import pytest

from fencepost import AdminClient, Consumer, Producer, TopicPartition
from fencepost_proto.kafka.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from fencepost_proto.kafka.messages.metadata import MetadataRequest, MetadataRequestTopic
from fencepost_testing.cluster_folder import ClusterFolder
from fencepost_testing.faults import FaultError
from fencepost_testing.faults.faults import Conditions
from fencepost_testing.local_cluster import LocalCluster
from fencepost_testing.waiting import until
from tests.integration.conftest import ClusterFactory
from tests.unit.batches import batch
from tests.unit.kafka_client import fetch_request, kafka_client, produce_request

Run = Callable[[Coroutine[Any, Any, None]], None]
TOPIC = "orders"
RECORDS = 20
WAIT_S = 20.0


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalCluster]:
    """One broker, for all tests that do not end it."""
    with LocalCluster(brokers=1) as cluster:
        yield cluster
        assert "Traceback" not in cluster.log(1)


@pytest.fixture
def cluster(shared: LocalCluster, run: Run) -> LocalCluster:
    """Without faults, and with two empty topics."""
    shared.faults.clear()

    async def scenario() -> None:
        async with AdminClient(shared.bootstrap) as admin:
            for topic in {TOPIC, "others", "more"} & set(await admin.list_topics()):
                await admin.delete_topic(topic)
            for topic in (TOPIC, "others"):
                await admin.create_topic(topic, partitions=2, replication_factor=1)

    run(scenario())
    return shared


class KafkaSender:
    """librdkafka's idempotent producer."""

    def __init__(self, cluster: ClusterFolder, **settings: Any) -> None:
        self.failures: list[str] = []
        self._producer = confluent_kafka.Producer(
            {
                "bootstrap.servers": cluster.kafka_bootstrap,
                "enable.idempotence": True,
                "retry.backoff.ms": 10,
                "reconnect.backoff.ms": 10,
                "reconnect.backoff.max.ms": 50,
                "linger.ms": 0,
                "log_level": 2,
                **settings,
            }
        )

    def send(self, count: int = RECORDS, *, topic: str = TOPIC, partition: int = 0, size: int = 0) -> None:
        """Returns once every record's outcome is known."""
        for number in range(count):
            self._producer.produce(
                topic, bytes(size) or b"%d" % number, partition=partition, on_delivery=self._delivered
            )
            self._producer.poll(0)
        assert self._producer.flush(30) == 0

    def _delivered(self, error: confluent_kafka.KafkaError | None, _: confluent_kafka.Message) -> None:
        if error is not None:
            self.failures.append(str(error.name()))


async def send(cluster: ClusterFolder, count: int = RECORDS, *, topic: str = TOPIC, partition: int = 0) -> Producer:
    """With Fencepost's own client."""
    async with Producer(cluster.bootstrap, linger_ms=0) as producer:
        for number in range(count):
            await producer.send(topic, b"%d" % number, partition=partition)
    return producer


async def values(cluster: ClusterFolder, count: int = RECORDS) -> list[int]:
    """All that is in the topic: so many records."""
    async with Consumer(cluster.bootstrap, TOPIC) as consumer:
        found = [int((await anext(consumer)).value or b"") for _ in range(count)]
        assert await consumer.poll(timeout_ms=50) == []
        return found


def test_answers_that_are_dropped_have_been_appended(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        with cluster.faults.drop_answers(api="Produce", topic=TOPIC, times=2) as lost:
            producer = await send(cluster)
            assert (lost.fired, producer.stats.deduplicated_batches > 0) == (2, True)
        assert await values(cluster) == list(range(RECORDS))
        with cluster.faults.drop_answers(api="Produce", topic=TOPIC, times=2, protocol="kafka") as lost:
            sender = KafkaSender(cluster)
            sender.send(partition=1)
            assert (lost.fired, sender.failures) == (2, [])
        assert lost.fired == 2
        assert sorted(await values(cluster, 2 * RECORDS)) == sorted([*range(RECORDS)] * 2)
        what = [line["what"] for line in cluster.faults.timeline()][-8:]
        assert what == ["posted", "fired", "fired", "removed"] * 2

    run(scenario())


def test_requests_that_are_dropped_have_not_been_handled(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        with cluster.faults.drop_requests(api="Produce", times=3) as lost:
            producer = await send(cluster)
            assert (lost.fired, producer.stats.deduplicated_batches) == (3, 0)
        with cluster.faults.drop_requests(api="Produce", times=3) as lost:
            sender = KafkaSender(cluster)
            sender.send()
            assert (lost.fired, sender.failures) == (3, [])
        assert await values(cluster, 2 * RECORDS) == [*range(RECORDS)] * 2

    run(scenario())


@pytest.mark.parametrize("error", ["NOT_ENOUGH_REPLICAS", "NOT_LEADER_OR_FOLLOWER"])
def test_an_error_after_which_clients_try_again_is_no_loss(run: Run, cluster: ClusterFolder, error: str) -> None:
    async def scenario() -> None:
        with cluster.faults.fail_requests("Produce", error=error, topic=TOPIC, partition=0, times=3) as failed:
            producer = await send(cluster)
            assert (failed.fired, producer.stats.deduplicated_batches) == (3, 0)
        with cluster.faults.fail_requests("Produce", error=error, topic=TOPIC, partition=0, times=3) as failed:
            sender = KafkaSender(cluster)
            sender.send()
            assert (failed.fired, sender.failures) == (3, [])
        assert await values(cluster, 2 * RECORDS) == [*range(RECORDS)] * 2

    run(scenario())


def test_an_error_that_is_final_is_what_the_application_gets(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        with cluster.faults.fail_requests("Produce", error="MESSAGE_TOO_LARGE", topic="others", partition=1):
            sender = KafkaSender(cluster)
            sender.send(1, topic="others", partition=1)
            assert sender.failures == ["MSG_SIZE_TOO_LARGE"]
            sender.send(3)
            sender.send(3, topic="others", partition=0)
            assert len(sender.failures) == 1

    run(scenario())


def test_requests_that_are_delayed_take_longer(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        for send_one in (own, kafka):
            with cluster.faults.delay_requests("Produce", delay_ms=400, times=1) as delayed:
                began = time.monotonic()
                await send_one(cluster)
                assert time.monotonic() - began >= 0.4, send_one
                assert delayed.fired == 1

    async def own(cluster: ClusterFolder) -> None:
        await send(cluster, 1)

    async def kafka(cluster: ClusterFolder) -> None:
        KafkaSender(cluster).send(1)

    run(scenario())


def test_conditions_pick_the_requests(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        faults = cluster.faults
        conditions: list[tuple[dict[str, Any], bool]] = [
            ({"topic": "others"}, False),
            ({"topic": TOPIC, "partition": 1}, False),
            ({"client_id": "another"}, False),
            ({"protocol": "fencepost"}, False),
            ({"client_id": "mine"}, True),
            ({"broker": 1, "partition": 0}, True),
        ]
        for condition, fires in conditions:
            with faults.drop_requests("Produce", times=1, **condition) as handle:
                KafkaSender(cluster, **{"client.id": "mine"}).send(1)
                assert handle.fired == fires, condition

    run(scenario())


def test_a_client_of_fencepost_s_own_is_picked_by_its_id(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        with (
            cluster.faults.drop_answers("Produce", client_id="billing") as produced,
            cluster.faults.delay_requests("ListOffsets", client_id="reports", delay_ms=1) as listed,
            cluster.faults.drop_requests("DescribeLogDirs", client_id="operator", times=1) as described,
        ):
            async with (
                Producer(cluster.bootstrap, client_id="orders") as producer,
                Consumer(cluster.bootstrap, client_id="reports") as consumer,
                AdminClient(cluster.bootstrap, client_id="operator") as admin,
            ):
                await producer.send_and_wait(TOPIC, b"0", partition=0)
                assert list((await consumer.end_offsets([TopicPartition(TOPIC, 0)])).values()) == [1]
                await admin.describe_replicas()
            assert (produced.fired, listed.fired, described.fired) == (0, 1, 1)
            async with Producer(cluster.bootstrap, client_id="billing") as producer:
                sent = await producer.send(TOPIC, b"1", partition=0)
                await produced.wait_fired_async()
                produced.remove()
                await sent

    run(scenario())


def test_any_api_can_be_failed_and_a_client_sees_the_error(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": cluster.kafka_bootstrap})
        topic = confluent_kafka.admin.NewTopic("more", num_partitions=1)
        with cluster.faults.fail_requests("CreateTopics", error="INVALID_PARTITIONS", times=1) as failed:
            error = admin.create_topics([topic])["more"].exception(10)
            assert "INVALID_PARTITIONS" in str(error)
            assert failed.fired == 1
        with cluster.faults.fail_requests("CreateTopic", error="INVALID_PARTITIONS", times=1) as failed:
            async with AdminClient(cluster.bootstrap) as own:
                with pytest.raises(Exception, match="INVALID_PARTITIONS by a fault"):
                    await own.create_topic("more", partitions=1, replication_factor=1)
            assert failed.fired == 1

    run(scenario())


def test_a_produce_request_fails_for_the_partitions_that_are_met_only(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        for partition in range(2):
            await send(cluster, 1, partition=partition)
        condition: Conditions = {"topic": TOPIC, "partition": 0, "times": 2}
        with cluster.faults.fail_requests("Produce", error="NOT_ENOUGH_REPLICAS", **condition):
            async with kafka_client(cluster.member(1).kafka_address) as client:
                both = produce_request(batch(), batch(), topic=TOPIC)
                client.send(both, 12)
                client.send(produce_request(batch(), topic=TOPIC), 12)
                client.send(both, 12)
                answers = [(await client.receive()).responses[0].partition_responses for _ in range(3)]
        codes = [sorted((answer.index, answer.error_code) for answer in answered) for answered in answers]
        assert codes == [[(0, 19), (1, 0)], [(0, 19)], [(0, 0), (1, 0)]]

    run(scenario())


def test_a_fetch_fails_for_the_partitions_that_are_met_and_waits_for_none(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        await send(cluster, 1, partition=1)
        condition: Conditions = {"topic": TOPIC, "partition": 0, "times": 1, "protocol": "kafka"}
        with cluster.faults.fail_requests("Fetch", error="NOT_LEADER_OR_FOLLOWER", **condition):
            async with kafka_client(cluster.member(1).kafka_address) as client:
                began = time.monotonic()
                answer = await client.ask(fetch_request(0, 1, topic=TOPIC, max_wait_ms=5_000), 12)
                assert time.monotonic() - began < 4
                whole = await client.ask(fetch_request(0, 0, topic=TOPIC), 12)
        (topic,) = answer.responses
        assert sorted((each.partition_index, each.error_code) for each in topic.partitions) == [(0, 6), (1, 0)]
        assert [each.error_code for each in whole.responses[0].partitions] == [0, 0]

    run(scenario())


def test_metadata_and_offsets_fail_for_the_topic_that_is_met(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        with (
            cluster.faults.fail_requests("Metadata", error="LEADER_NOT_AVAILABLE", topic=TOPIC, protocol="kafka"),
            cluster.faults.fail_requests(
                "ListOffsets", error="OFFSET_NOT_AVAILABLE", topic=TOPIC, partition=1, protocol="kafka"
            ),
        ):
            async with kafka_client(cluster.member(1).kafka_address) as client:
                asked = [MetadataRequestTopic(name=name) for name in (TOPIC, "others")]
                metadata = await client.ask(MetadataRequest(topics=asked), 9)
                partitions = [ListOffsetsPartition(partition_index=index, timestamp=-1) for index in (0, 1)]
                topics = [ListOffsetsTopic(name=name, partitions=partitions) for name in (TOPIC, "others")]

                async def codes() -> dict[tuple[str, int], int]:
                    answer = await client.ask(ListOffsetsRequest(topics=topics), 6)
                    return {
                        (topic.name, each.partition_index): each.error_code
                        for topic in answer.topics
                        for each in topic.partitions
                    }

                async def served() -> bool:
                    return 6 not in (await codes()).values()

                await until(served, "the broker leads what was just created", WAIT_S)
                offsets = await codes()
        found = {topic.name: (topic.error_code, len(topic.partitions)) for topic in metadata.topics}
        assert found == {TOPIC: (5, 0), "others": (0, 2)}
        assert metadata.brokers
        assert offsets == {(TOPIC, 0): 0, (TOPIC, 1): 78, ("others", 0): 0, ("others", 1): 0}

    run(scenario())


def test_a_reader_of_two_partitions_loses_one_of_them_only(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        for partition in range(2):
            await send(cluster, 1, partition=partition)
        condition: Conditions = {"topic": TOPIC, "partition": 0, "protocol": "fencepost"}
        with cluster.faults.fail_requests("Fetch", error="NOT_LEADER_OR_FOLLOWER", **condition) as failed:
            async with Consumer(cluster.bootstrap, TOPIC) as consumer:
                assert (await anext(consumer)).partition == 1
                await failed.wait_fired_async(2)
                failed.remove()
                assert (await anext(consumer)).partition == 0

    run(scenario())


def test_fetches_fail_and_are_lost_and_readers_go_on(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        await send(cluster)
        for protocol, read in (("fencepost", values), ("kafka", read_in_kafka)):
            condition: Conditions = {"topic": TOPIC, "partition": 0, "times": 2, "protocol": protocol}
            with (
                cluster.faults.fail_requests("Fetch", error="NOT_LEADER_OR_FOLLOWER", **condition) as failed,
                cluster.faults.drop_answers("Fetch", **condition) as lost,
            ):
                assert await read(cluster) == list(range(RECORDS))
                assert (failed.fired, lost.fired) == (2, 2)

    run(scenario())


async def read_in_kafka(cluster: ClusterFolder) -> list[int]:
    def read() -> list[int]:
        consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": cluster.kafka_bootstrap,
                "group.id": "none",
                "reconnect.backoff.ms": 10,
                "reconnect.backoff.max.ms": 50,
                "log_level": 2,
            }
        )
        consumer.assign([confluent_kafka.TopicPartition(TOPIC, 0, 0)])
        found: list[int] = []
        while len(found) < RECORDS:
            message = consumer.poll(1.0)
            if message is not None and message.error() is None:
                found.append(int(message.value() or b""))
        consumer.close()
        return found

    return await asyncio.to_thread(read)


def test_chance_decides_how_many_of_them_are_met(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        with cluster.faults.drop_answers("Produce", probability=0.2) as lost:
            async with Producer(cluster.bootstrap, linger_ms=0) as producer:
                for number in range(60):
                    await producer.send_and_wait(TOPIC, b"%d" % number, partition=0)
            assert 1 <= lost.fired <= 40
        assert await values(cluster, 60) == list(range(60))

    run(scenario())


def test_a_fault_outlives_a_restart_and_none_is_left_after_a_clear(run: Run, cluster_factory: ClusterFactory) -> None:
    async def scenario() -> None:
        async with cluster_factory(brokers=1) as cluster:
            async with AdminClient(cluster.bootstrap) as admin:
                await admin.create_topic(TOPIC, partitions=1, replication_factor=1)
            lost = cluster.faults.drop_answers("Produce", times=2)
            await send(cluster, 1)
            assert lost.fired in {1, 2}
            await cluster.kill(1)
            await cluster.restart(1)
            await send(cluster, 5)
            assert lost.fired == 2
            assert str(lost) == f"fault {lost.id} (drop-answers api=Produce times=2)"
            assert [handle.id for handle in cluster.faults.active()] == [lost.id]
            cluster.faults.drop_requests(probability=1.0)
            cluster.faults.clear()
            await send(cluster, 1)
            assert (lost.fired, lost.is_set, cluster.faults.active()) == (2, False, [])

    run(scenario())


def test_what_cannot_be_is_refused_by_its_name(run: Run, cluster: ClusterFolder) -> None:
    async def scenario() -> None:
        faults = cluster.faults
        refused: list[tuple[Callable[[], object], str]] = [
            (lambda: faults.drop_answers("Prodcue"), "no api 'Prodcue': there are AlterConfigs, AlterPartition"),
            (lambda: faults.drop_answers("CreateTopic", protocol="kafka"), "no api 'CreateTopic'"),
            (lambda: faults.drop_answers("Produce", protocol="amqp"), "protocol='amqp'"),
            (lambda: faults.drop_answers("Produce", topic="order"), r"no topic 'order' .*: it has .*orders, others"),
            (lambda: faults.drop_answers("Produce", topic=TOPIC, partition=2), "no partition 2 of topic 'orders'"),
            (lambda: faults.drop_answers("Produce", partition=-1), "partition=-1"),
            (lambda: faults.drop_answers("Produce", broker=4), "no broker 4 in this cluster: it has 1"),
            (lambda: faults.drop_answers("Produce", times=0), "times=0"),
            (lambda: faults.drop_answers("Produce", probability=1.5), "probability=1.5"),
            (lambda: faults.drop_answers("Produce", topics=TOPIC), "no condition 'topics'"),  # type: ignore[call-arg]
            (lambda: faults.fail_requests("Produce", error="NO_SUCH"), "error='NO_SUCH'"),
            (lambda: faults.delay_requests("Produce", delay_ms=-1), "delay_ms=-1"),
            (lambda: faults.find("drop-answers-99"), "no fault 'drop-answers-99' is set: there is none"),
        ]
        for call, message in refused:
            with pytest.raises(FaultError, match=message):
                call()
        assert faults.active() == []

    run(scenario())


def test_without_faults_nothing_can_be_set(run: Run, cluster_factory: ClusterFactory) -> None:
    async def scenario() -> None:
        async with cluster_factory(brokers=1, faults=False) as cluster:
            with pytest.raises(FaultError, match="was started without faults"):
                cluster.faults.drop_answers("Produce")

    run(scenario())
