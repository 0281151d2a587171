"""Brokers that stop, are paused, lose their controller, their tail or their disk: who leads, and what is kept."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc

from fencepost import AdminClient, Consumer, Producer
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import BrokerRegistration, Partition
from fencepost_proto.protocol.v1 import broker_pb2, broker_pb2_grpc, controller_pb2, controller_pb2_grpc
from fencepost_proto.transport.wire import GrpcWire
from fencepost_testing.cluster_metadata import read_image
from fencepost_testing.local_cluster import CONTROLLER, AsyncLocalCluster
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous

ClusterFactory = Callable[..., AsyncLocalCluster]

WAIT_S = 20.0
SESSION_TIMEOUT_MS = 1_000


class Scene:
    """A cluster with the topic orders (one partition on every broker), a producer, and what was sent."""

    def __init__(self, cluster: AsyncLocalCluster, producer: Producer) -> None:
        self.cluster = cluster
        self.producer = producer
        self.sent: list[bytes] = []

    async def send(self, count: int = 20) -> None:
        values = [f"record {len(self.sent) + number}".encode() for number in range(count)]
        deliveries = [await self.producer.send("orders", value, partition=0) for value in values]
        for delivery in deliveries:
            await delivery
        self.sent += values

    async def until(
        self, ask: int, what: str, condition: Callable[[Partition, dict[int, BrokerRegistration]], bool]
    ) -> Partition:
        """The partition as broker `ask` shows it, once the condition holds there."""

        async def look() -> tuple[Partition, dict[int, BrokerRegistration]] | None:
            image = await read_image(self.cluster.member(ask).address, timeout_s=1)
            if image is None or "orders" not in image.topic_ids:
                return None
            return image.partitions[image.topic_ids["orders"], 0], dict(image.brokers)

        return (await until(look, what, WAIT_S, holds=lambda seen: condition(*seen)))[0]

    async def in_sync(self, ask: int = 1) -> Partition:
        return await self.until(ask, "all in sync", lambda partition, _: len(partition.isr) == len(partition.replicas))

    async def check(self) -> None:
        """Everything that was sent is there, once, in order."""
        async with Consumer(self.cluster.bootstrap, "orders") as consumer:
            for expected in self.sent:
                async with asyncio.timeout(WAIT_S):
                    assert (await anext(consumer)).value == expected


@asynccontextmanager
async def scene(cluster: AsyncLocalCluster) -> AsyncIterator[Scene]:
    brokers = len(cluster.broker_ids)
    async with cluster:
        async with AdminClient(cluster.bootstrap) as admin:
            await admin.create_topic(
                "orders", partitions=1, replication_factor=brokers, min_insync_replicas=min(2, brokers)
            )
        async with Producer(cluster.bootstrap) as producer:
            made = Scene(cluster, producer)
            await made.send()
            yield made


def quick(cluster_factory: ClusterFactory, brokers: int = 3) -> AsyncLocalCluster:
    return cluster_factory(brokers=brokers, controller_overrides={"session_timeout_ms": SESSION_TIMEOUT_MS})


def others_than(broker: int) -> list[int]:
    return [other for other in (1, 2, 3) if other != broker]


@asynchronous
async def test_a_leader_that_stops_clean_hands_over_first_and_comes_back_in_sync(
    cluster_factory: ClusterFactory,
) -> None:
    async with scene(quick(cluster_factory)) as cluster:
        leader = (await cluster.in_sync()).leader
        sending = asyncio.create_task(cluster.send(500))
        assert await cluster.cluster.stop(leader) == 0
        await sending
        data_dir = cluster.cluster.member(leader).directory
        assert (data_dir / "clean-shutdown").exists()
        log = cluster.cluster.log(leader)
        assert re.search(r"shutting down\n(.*\n)*.*stopped leading(.*\n)*.*stopped clean", log), log
        assert "not handed over in time" not in log
        await cluster.cluster.start(leader)
        await cluster.in_sync(others_than(leader)[0])
        assert not (data_dir / "clean-shutdown").exists()
        assert "started" in cluster.cluster.log(leader)
        assert "clean=True may_have_lost_tail=False" in cluster.cluster.log(leader)
        await cluster.send()
        await cluster.check()


@asynchronous
async def test_a_leader_that_is_paused_beyond_its_session_wakes_as_a_follower_with_the_same_epoch(
    cluster_factory: ClusterFactory,
) -> None:
    async with scene(quick(cluster_factory)) as cluster:
        before = await cluster.in_sync()
        leader, other = before.leader, others_than(before.leader)[0]
        image = await read_image(cluster.cluster.member(other).address, timeout_s=5)
        assert image is not None
        epoch = image.brokers[leader].broker_epoch
        await cluster.cluster.pause(leader)
        moved = await cluster.until(other, "another leader", lambda now, _: now.leader not in (leader, -1))
        assert moved.leader_epoch > before.leader_epoch
        assert leader not in moved.isr
        await cluster.send()
        await cluster.cluster.resume(leader)
        await cluster.in_sync(leader)
        await cluster.until(leader, "unfenced", lambda _, brokers: not brokers[leader].fenced)
        image = await read_image(cluster.cluster.member(leader).address, timeout_s=5)
        assert image is not None
        assert image.brokers[leader].broker_epoch == epoch
        await cluster.send()
        await cluster.check()


@asynchronous
async def test_without_the_controller_producing_and_ids_go_on_and_on_its_return_nothing_has_moved(
    cluster_factory: ClusterFactory,
) -> None:
    async with scene(quick(cluster_factory)) as cluster:
        before = await cluster.in_sync()
        address = cluster.cluster.member(before.leader).address
        async with GrpcWire().connect(address) as channel:
            broker: broker_pb2_grpc.BrokerAsyncStub = broker_pb2_grpc.BrokerStub(channel)
            admin: controller_pb2_grpc.AdminAsyncStub = controller_pb2_grpc.AdminStub(channel)
            first = await broker.InitProducerId(broker_pb2.InitProducerIdRequest())
            assert first.error.code == ErrorCode.NONE
            await cluster.cluster.kill(CONTROLLER)
            await cluster.cluster.wait_gone(CONTROLLER)
            await cluster.send(200)
            second = await broker.InitProducerId(broker_pb2.InitProducerIdRequest())
            assert second.producer_id == first.producer_id + 1
            named = await broker.InitProducerId(
                broker_pb2.InitProducerIdRequest(name="loader", producer_id=-1, producer_epoch=-1, timeout_ms=100)
            )
            assert named.error.code == ErrorCode.COORDINATOR_NOT_AVAILABLE
            create = controller_pb2.CreateTopicRequest(name="more", partitions=1, replication_factor=1)
            assert (await admin.CreateTopic(create)).error.code == ErrorCode.NOT_CONTROLLER
            await cluster.cluster.start(CONTROLLER)
            async with asyncio.timeout(WAIT_S):
                while True:
                    created = await admin.CreateTopic(create)
                    if created.error.code == ErrorCode.NONE:
                        break
                    assert created.error.code == ErrorCode.NOT_CONTROLLER, created.error
                    await asyncio.sleep(0.02)
        after = await cluster.in_sync(before.leader)
        assert (after.leader, after.leader_epoch) == (before.leader, before.leader_epoch)
        await cluster.send()
        await cluster.check()


def reboot(cluster: AsyncLocalCluster, broker: int) -> None:
    """To a killed broker, make it look as if its machine had been rebooted meanwhile."""
    meta = cluster.member(broker).directory / "meta.properties"
    text = re.sub(r"boot.id=.*", "boot.id=the-boot-before", meta.read_text())
    assert "the-boot-before" in text
    meta.write_text(text)


@asynchronous
async def test_a_broker_whose_machine_went_down_is_in_no_in_sync_set_until_it_has_caught_up(
    cluster_factory: ClusterFactory,
) -> None:
    async with scene(quick(cluster_factory, brokers=1)) as cluster:
        before = await cluster.in_sync()
        assert before.isr == (1,)
        await cluster.cluster.kill(1)
        await cluster.cluster.wait_gone(1)
        reboot(cluster.cluster, 1)
        await cluster.cluster.start(1)
        # The last one in sync may have lost what it acknowledged: never elected silently (KIP-966).
        after = await cluster.until(1, "out of the in-sync set", lambda now, _: now.isr == ())
        assert after.leader == -1
        assert after.last_known_isr == (1,)
        assert "may_have_lost_tail=True" in cluster.cluster.log(1)
        # Reported and acknowledged once: a second start does not report it again.
        await cluster.cluster.kill(1)
        await cluster.cluster.wait_gone(1)
        await cluster.cluster.start(1)
        await cluster.cluster.wait_registered()
        assert "clean=False may_have_lost_tail=False" in cluster.cluster.log(1)
        async with AdminClient(cluster.cluster.bootstrap) as admin:
            await admin.elect_leader("orders", 0, unclean=True)
        await cluster.until(1, "led again by command", lambda now, _: now.leader == 1)
        await cluster.send()
        await cluster.check()


@asynchronous
async def test_a_broker_that_lost_its_disk_is_filled_again_by_the_leader(cluster_factory: ClusterFactory) -> None:
    async with scene(quick(cluster_factory)) as cluster:
        before = await cluster.in_sync()
        leader = before.leader
        other = others_than(leader)[0]
        await cluster.cluster.kill(leader)
        await cluster.cluster.wait_gone(leader)
        member = cluster.cluster.member(leader)
        for path in member.directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path not in (member.config_file, member.log_file):
                path.unlink()
        await cluster.cluster.start(leader)
        await cluster.in_sync(other)
        await cluster.send()
        for survivor in others_than(leader):
            if survivor != leader:
                await cluster.cluster.stop(survivor)
                break
        await cluster.until(
            leader, "one stopped", lambda now, _: len(now.isr) == 2 and leader in now.isr and now.leader != -1
        )
        await cluster.check()
        logs = sorted(member.directory.glob("orders-0/*.log"))
        assert sum(path.stat().st_size for path in logs) > 0


@asynchronous
async def test_all_brokers_killed_at_once_come_back_with_everything_and_recognise_old_batches(
    cluster_factory: ClusterFactory,
) -> None:
    async with scene(quick(cluster_factory)) as cluster:
        await cluster.in_sync()
        before = await described(cluster, 1)
        cluster.cluster.kill_all()
        for node in (CONTROLLER, 1, 2, 3):
            await cluster.cluster.wait_gone(node)
        await cluster.cluster.up()
        await cluster.in_sync()
        after = await described(cluster, 1)
        assert after.producers == before.producers
        assert after.log_end_offset == before.log_end_offset == len(cluster.sent)
        await cluster.send()
        await cluster.check()


async def described(cluster: Scene, ask: int) -> broker_pb2.DescribeProducersResponse:
    """What the partition's leader knows of producers, all of it committed."""

    async def look() -> broker_pb2.DescribeProducersResponse | None:
        image = await read_image(cluster.cluster.member(ask).address, timeout_s=1)
        if image is None:
            return None
        partition = image.partitions[image.topic_ids["orders"], 0]
        async with GrpcWire().connect(image.current_leader(partition).address or "127.0.0.1:1") as channel:
            stub: broker_pb2_grpc.BrokerAsyncStub = broker_pb2_grpc.BrokerStub(channel)
            request = broker_pb2.DescribeProducersRequest(
                topic_id=partition.topic_id, producer_id=-1, commit_timeout_ms=5_000
            )
            try:
                return await stub.DescribeProducers(request)
            except grpc.aio.AioRpcError:  # it may just have gone
                return None

    what = "the leader tells the producers' state"
    return await until(look, what, WAIT_S, holds=lambda answer: answer.error.code == ErrorCode.NONE)
