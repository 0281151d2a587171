"""The admin client against real processes: topics, elections, reassignments, and a controller that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from fencepost import AdminClient, Consumer, Producer, TopicPartition
from fencepost.descriptions import TopicDescription
from fencepost.errors import (
    ElectionNotNeeded,
    InvalidConfig,
    InvalidPartitions,
    InvalidReplicaAssignment,
    InvalidReplicationFactor,
    InvalidTopic,
    MessageTooLarge,
    NoReassignmentInProgress,
    OffsetOutOfRange,
    TopicAlreadyExists,
    UnknownTopicOrPartition,
)
from fencepost_testing.local_cluster import CONTROLLER, AsyncLocalCluster
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous

ClusterFactory = Callable[..., AsyncLocalCluster]
SESSION_TIMEOUT_S = 3.0


async def described(
    admin: AdminClient, condition: Callable[[TopicDescription], bool], timeout_s: float = 20.0
) -> TopicDescription:
    """The topic "orders" once the condition holds."""
    return await until(lambda: admin.describe_topic("orders"), "the topic as it should be", timeout_s, holds=condition)


def led_by_others_than(dead: int) -> Callable[[TopicDescription], bool]:
    return lambda topic: all(partition.leader not in (dead, -1) for partition in topic.partitions)


async def is_live(admin: AdminClient, broker: int, timeout_s: float = 20.0) -> None:
    async def live() -> bool:
        return not {b.id: b for b in (await admin.describe_cluster()).brokers}[broker].fenced

    await until(live, f"broker {broker} is live", timeout_s)


@asynchronous
async def test_topics_are_made_described_and_removed_and_what_is_impossible_is_refused_by_name(
    cluster: AsyncLocalCluster,
) -> None:
    async with AdminClient(cluster.bootstrap) as admin:
        made = await admin.create_topic("orders", partitions=4, replication_factor=3, min_insync_replicas=2)
        assert [p.partition for p in made.partitions] == [0, 1, 2, 3]
        assert all(set(p.replicas) == {1, 2, 3} and p.leader in p.replicas for p in made.partitions)
        assert {p.leader for p in made.partitions} == {1, 2, 3}
        assert made.config.min_insync_replicas == 2
        with pytest.raises(TopicAlreadyExists, match="orders"):
            await admin.create_topic("orders")
        with pytest.raises(InvalidTopic, match="a/b"):
            await admin.create_topic("a/b")
        with pytest.raises(InvalidReplicationFactor, match="4"):
            await admin.create_topic("big", replication_factor=4)
        with pytest.raises(InvalidConfig, match="min_insync_replicas"):
            await admin.create_topic("strict", replication_factor=2, min_insync_replicas=3)
        with pytest.raises(InvalidReplicaAssignment, match="9"):
            await admin.create_topic("nowhere", assignments=[(1, 9)])
        assert await admin.list_topics() == ["orders"]
        await admin.delete_topic("orders")
        assert await admin.list_topics() == []
        with pytest.raises(UnknownTopicOrPartition, match="orders"):
            await admin.delete_topic("orders")
        cluster_now = await admin.describe_cluster()
        assert [(broker.id, broker.fenced) for broker in cluster_now.brokers] == [
            (1, False),
            (2, False),
            (3, False),
        ]


@asynchronous
async def test_a_topic_gets_other_settings_and_more_partitions_while_a_producer_writes_to_it(
    cluster: AsyncLocalCluster,
) -> None:
    async with AdminClient(cluster.bootstrap) as admin:
        await admin.create_topic("orders", partitions=1, replication_factor=3)
        async with Producer(cluster.bootstrap) as producer:
            await producer.send_and_wait("orders", b"before")
            altered = await admin.alter_topic("orders", max_message_bytes=1_000, message_timestamp_type="append")
            assert (altered.max_message_bytes, altered.message_timestamp_type) == (1_000, "append")

            async def too_large() -> bool:
                try:
                    await producer.send_and_wait("orders", b"x" * 2_000)
                except MessageTooLarge:
                    return True
                return False

            await until(too_large, "a record is too large for the topic", 20.0)
            assert (await producer.send_and_wait("orders", b"at the append")).timestamp_ms == -1  # the leader's own
            grown = await admin.create_partitions("orders", 4)
            assert [len(p.replicas) for p in grown.partitions] == [3, 3, 3, 3]
            assert all(p.isr == p.replicas for p in grown.partitions)

            async def accepted() -> bool:
                try:
                    return (await producer.send_and_wait("orders", b"after", partition=3)).offset == 0
                except UnknownTopicOrPartition:
                    return False

            await until(accepted, "the producer sees the new partition", 20.0)
        with pytest.raises(InvalidPartitions, match="has 4 partitions: 4 are not more"):
            await admin.create_partitions("orders", 4)
        with pytest.raises(InvalidConfig, match="min_insync_replicas=4: must be 1 to 3"):
            await admin.alter_topic("orders", min_insync_replicas=4)
        await cluster.kill(CONTROLLER)
        await cluster.restart(CONTROLLER)
        described_again = await described(admin, lambda topic: len(topic.partitions) == 4)
        assert described_again.config == altered


@asynchronous
async def test_deleted_records_stay_deleted_through_failovers_and_restarts_of_everything(
    cluster_factory: ClusterFactory,
) -> None:
    """One replica is down when they are deleted, and leads later."""
    async with (
        cluster_factory(brokers=3, controller_overrides={"preferred_leader_interval_ms": 3_600_000}) as cluster,
        AdminClient(cluster.bootstrap) as admin,
    ):
        await admin.create_topic("orders", assignments=[(1, 2, 3)], min_insync_replicas=1)
        tp = TopicPartition("orders", 0)
        async with Producer(cluster.bootstrap) as producer:
            for number in range(10):
                await producer.send_and_wait("orders", b"%d" % number)
            with pytest.raises(OffsetOutOfRange, match="below offset 11: the high watermark is 10"):
                await admin.delete_records("orders", {0: 11})
            await cluster.kill(3)
            await described(admin, lambda topic: topic.partitions[0].isr == (1, 2))
            assert await admin.delete_records("orders", {0: 7}) == {0: 7}
            await cluster.kill(1)
            await described(admin, lambda topic: topic.partitions[0].leader == 2)
            assert await admin.delete_records("orders", {0: 4}) == {0: 7}
            await cluster.restart(3)
            await described(admin, lambda topic: topic.partitions[0].isr == (2, 3))
            await cluster.kill(2)
            await described(admin, lambda topic: topic.partitions[0].leader == 3)
            async with Consumer(cluster.bootstrap) as consumer:
                assert await consumer.beginning_offsets([tp]) == {tp: 7}
            await cluster.kill(3, CONTROLLER)
            for process in (CONTROLLER, 3, 2, 1):
                await cluster.restart(process)
            assert (await producer.send_and_wait("orders", b"10")).offset == 10
        async with Consumer(cluster.bootstrap, "orders") as consumer:
            records = await until(consumer.poll, "records", 20.0)
            assert [record.value for record in records] == [b"7", b"8", b"9", b"10"]

        async def starts() -> dict[int, list[int]]:
            replicas = await admin.describe_replicas()
            return {broker: [r.log_start_offset for r in found.replicas] for broker, found in replicas.items()}

        await until(starts, "every replica begins at 7", 20.0, holds=lambda found: found == {1: [7], 2: [7], 3: [7]})
        assert await admin.delete_records("orders", {0: None}) == {0: 11}


@asynchronous
async def test_a_topic_asked_for_while_the_controller_restarts_is_made_once(cluster: AsyncLocalCluster) -> None:
    async with AdminClient(cluster.bootstrap) as admin:
        await cluster.kill(CONTROLLER)
        asking = asyncio.create_task(admin.create_topic("orders", partitions=2, replication_factor=3))
        await asyncio.wait([asking], timeout=0.3)
        assert not asking.done()
        await cluster.restart(CONTROLLER)
        made = await asking
        assert len(made.partitions) == 2
        assert await admin.list_topics() == ["orders"]


@asynchronous
async def test_the_preferred_leader_is_elected_on_demand_after_a_failover(cluster_factory: ClusterFactory) -> None:
    overrides = {"preferred_leader_interval_ms": 3_600_000}  # not by itself
    async with (
        cluster_factory(brokers=3, controller_overrides=overrides) as cluster,
        AdminClient(cluster.bootstrap) as admin,
    ):
        await admin.create_topic("orders", assignments=[(2, 3, 1)])
        with pytest.raises(ElectionNotNeeded):
            await admin.elect_leader("orders", 0)
        await cluster.kill(2)
        await described(admin, lambda topic: topic.partitions[0].leader == 3)
        await cluster.restart(2)
        await described(admin, lambda topic: 2 in topic.partitions[0].isr)
        await admin.elect_leader("orders", 0)
        assert (await admin.describe_topic("orders")).partitions[0].leader == 2


@asynchronous
async def test_an_offline_partition_is_led_again_only_by_an_explicit_unclean_election(
    cluster: AsyncLocalCluster,
) -> None:
    async with AdminClient(cluster.bootstrap) as admin:
        await admin.create_topic("orders", assignments=[(1, 2)])
        async with Producer(cluster.bootstrap) as producer:
            await producer.send_and_wait("orders", b"on both")
            await cluster.kill(2)
            await described(admin, lambda topic: topic.partitions[0].isr == (1,))
            await producer.send_and_wait("orders", b"only on 1")
        await cluster.kill(1)
        await described(admin, lambda topic: topic.partitions[0].leader == -1)
        await cluster.restart(2)
        await is_live(admin, 2)
        assert (await admin.describe_topic("orders")).partitions[0].leader == -1
        await admin.elect_leader("orders", 0, unclean=True)
        assert (await admin.describe_topic("orders")).partitions[0].leader == 2


@asynchronous
async def test_a_reassigned_partition_moves_with_its_records_and_its_producer_state(
    cluster_factory: ClusterFactory,
) -> None:
    async with cluster_factory(brokers=4) as cluster, AdminClient(cluster.bootstrap) as admin:
        await admin.create_topic("orders", assignments=[(1, 2)])
        async with Producer(cluster.bootstrap) as producer:
            for n in range(100):
                await producer.send("orders", str(n).encode())
            await producer.flush()
            before = await admin.describe_producers("orders", 0)
            await admin.reassign_partitions("orders", {0: (3, 4)})
            topic = await described(
                admin, lambda topic: topic.partitions[0].replicas == (3, 4) and topic.partitions[0].leader in (3, 4)
            )
            assert topic.partitions[0].adding == topic.partitions[0].removing == ()
            assert await admin.list_reassignments() == []
            after = await admin.describe_producers("orders", 0)
            assert after.producers == before.producers
            await producer.send_and_wait("orders", b"100")
        async with Consumer(cluster.bootstrap, "orders") as consumer:
            async with asyncio.timeout(10):
                values = [(await anext(consumer)).value for _ in range(101)]
        assert values == [str(n).encode() for n in range(101)]
        hosts = {
            broker: replicas for broker, replicas in (await admin.describe_replicas()).items() if replicas.replicas
        }
        assert sorted(hosts) == [3, 4]


@asynchronous
async def test_a_reassignment_to_a_dead_broker_is_listed_and_can_be_cancelled(cluster: AsyncLocalCluster) -> None:
    async with AdminClient(cluster.bootstrap) as admin:
        await admin.create_topic("orders", assignments=[(1, 2)])
        with pytest.raises(NoReassignmentInProgress):
            await admin.cancel_reassignment("orders", 0)
        await cluster.pause(3)  # it cannot catch up
        await admin.reassign_partitions("orders", {0: (1, 3)})
        (under_way,) = await admin.list_reassignments()
        assert (under_way.topic, under_way.partition, under_way.adding, under_way.removing) == (
            "orders",
            0,
            (3,),
            (2,),
        )
        await admin.cancel_reassignment("orders", 0)
        assert await admin.list_reassignments() == []
        assert set((await admin.describe_topic("orders")).partitions[0].replicas) == {1, 2}
        await cluster.resume(3)


@asynchronous
async def test_a_client_knows_the_new_leader_of_a_killed_broker_without_waiting_for_any_timeout(
    cluster: AsyncLocalCluster,
) -> None:
    async with AdminClient(cluster.bootstrap) as admin:
        await admin.create_topic("orders", assignments=[(1, 2, 3), (2, 3, 1), (3, 1, 2)])
        loop = asyncio.get_running_loop()
        for victim in (1, 2, 3):  # whichever brokers this client watches, one of them is among the first two
            await described(admin, lambda topic: all(len(p.isr) == 3 for p in topic.partitions))
            killed_at = loop.time()
            await cluster.kill(victim)
            await described(admin, led_by_others_than(victim))
            assert loop.time() - killed_at < SESSION_TIMEOUT_S / 2
            await cluster.wait_gone(victim)
            await cluster.start(victim)


@asynchronous
async def test_producer_state_is_the_same_at_the_new_leader_as_at_the_old_one(cluster: AsyncLocalCluster) -> None:
    async with AdminClient(cluster.bootstrap) as admin:
        await admin.create_topic("orders", partitions=1, replication_factor=3, min_insync_replicas=2)
        async with Producer(cluster.bootstrap) as producer:
            for n in range(8):
                await producer.send_and_wait("orders", str(n).encode())
            before = await admin.describe_producers("orders", 0)
            (state,) = before.producers
            assert (state.producer_id, state.producer_epoch) == (producer.producer_id, producer.epoch)
            assert [batch.base_offset for batch in state.batches] == [3, 4, 5, 6, 7]
            await cluster.kill((await admin.describe_topic("orders")).partitions[0].leader)
            after = await admin.describe_producers("orders", 0)
            assert after.leader_epoch > before.leader_epoch
            assert after.producers == before.producers
            assert (await admin.describe_producers("orders", 0, producer_id=state.producer_id)) == after
            missing = await admin.describe_producers("orders", 0, producer_id=state.producer_id + 1)
            assert missing.producers == ()
