"""Stories on a whole simulated cluster: what the random runs found, told plainly."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Coroutine, Generator
from dataclasses import replace
from typing import Any

import pytest

from fencepost import AdminClient, Consumer, Producer
from fencepost.attempts import WARN_AFTER_S
from fencepost.cluster import ClusterClient
from fencepost_node.folders.data_folder import CLEAN_SHUTDOWN
from fencepost_node.grpc.describe_log_dirs import describe_log_dirs
from fencepost_proto.protocol.errors import ElectionNotNeeded, InvalidRequest
from fencepost_proto.protocol.v1 import controller_pb2
from fencepost_proto.runtime.host import Host
from tests.simulation.cluster import CONTROLLER, ClusterSettings, SimCluster, broker_node
from tests.simulation.disk import Fault, MountedDisk
from tests.simulation.loop import collector_off
from tests.simulation.process import SimProcess
from tests.simulation.world import World


@pytest.fixture
def cluster() -> Generator[SimCluster]:
    """Three brokers and a controller, running."""
    with collector_off(), World(1) as world:
        cluster = SimCluster(world, ClusterSettings())
        cluster.start_all()
        yield cluster
        cluster.database.close()
        assert world.failures() == []


def play(cluster: SimCluster, story: Coroutine[Any, Any, None]) -> None:
    cluster.world.run(story)


async def create_topic(cluster: SimCluster, name: str, partitions: int = 1) -> None:
    request = controller_pb2.CreateTopicRequest(name=name, partitions=partitions, replication_factor=3)
    while await cluster.ask_admin("CreateTopic", request) != "ok":  # noqa: ASYNC110 - brokers are still registering
        await asyncio.sleep(0.1)


async def all_in_sync(cluster: SimCluster) -> None:
    async with asyncio.timeout(30):
        while any(len(partition.isr) < 3 for partition in cluster.judge.image.partitions.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def ended(process: SimProcess, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while process.alive:  # noqa: ASYNC110 - a process has no event for its end
            await asyncio.sleep(0.05)


async def produce(
    cluster: SimCluster, count: int = 1, value: bytes = b"value", partitions: int = 1, within_s: float = 30
) -> None:
    """An application sends records to `orders`, each when the one before is acknowledged, and ends."""

    async def application(host: Host, disk: MountedDisk) -> None:
        async with Producer(cluster.bootstrap, host=host) as producer:
            for number in range(count):
                await producer.send_and_wait("orders", value, partition=number % partitions)

    await ended(cluster.world.start("app", application), within_s)


def test_every_broker_stops_clean_while_it_leads_and_follows(cluster: SimCluster) -> None:
    async def story() -> None:
        await create_topic(cluster, "orders", partitions=3)
        await all_in_sync(cluster)
        for broker_id in (1, 2, 3):
            node = broker_node(broker_id)
            process = cluster.world.machine(node).process
            assert process is not None
            cluster.stop(node)
            await ended(process, within_s=10)
            cluster.start(node)
            await all_in_sync(cluster)
        assert cluster.exits == {"stopped": 3}

    play(cluster, story())


@pytest.mark.parametrize("close_first", [True, False])
def test_a_producer_closes_though_its_streams_break_at_that_very_moment(cluster: SimCluster, close_first: bool) -> None:
    """A cancelled task that meets a broken stream at the same moment must still end (simulation, seed 2015)."""
    world = cluster.world
    close = asyncio.Event()

    async def application(host: Host, disk: MountedDisk) -> None:
        producer = Producer(cluster.bootstrap, host=host)
        await producer.start()
        for number in range(20):
            await (await producer.send("orders", b"value", partition=number % 3))
        await close.wait()
        await producer.close()

    async def story() -> None:
        await create_topic(cluster, "orders", partitions=3)
        process = world.start("app", application)
        await asyncio.sleep(1)
        world.pause("app")  # all that follows comes upon it at once, when it wakes
        if close_first:
            close.set()
        for broker_id in (1, 2, 3):
            world.network.reset("app", broker_node(broker_id))
        await asyncio.sleep(0.1)
        close.set()
        world.resume("app")
        await ended(process, within_s=60)

    play(cluster, story())


def test_an_end_is_not_clean_where_a_replica_had_failed(cluster: SimCluster) -> None:
    """What its log holds was not synced: after a power failure its tail may be gone, and the controller has to know."""
    medium = cluster.world.machine(broker_node(1)).disk

    async def story() -> None:
        await create_topic(cluster, "orders", partitions=3)
        await all_in_sync(cluster)
        medium.faults.append(Fault(("append",), errno.EIO, "orders-0"))
        await produce(cluster, 6, partitions=3, within_s=60)
        assert cluster.brokers[1].manager.failed_replicas
        cluster.kept_down[broker_node(1)] = None
        cluster.stop(broker_node(1))
        async with asyncio.timeout(10):
            while cluster.alive(1):  # noqa: ASYNC110 - a process has no event for its end
                await asyncio.sleep(0.05)
        assert cluster.exits == {"stopped": 1}
        assert not any(path.endswith(CLEAN_SHUTDOWN) for path, _ in medium.files())

    play(cluster, story())


@pytest.mark.parametrize("restarts", [True, False])
@pytest.mark.parametrize("broker_id", [1, 2])
def test_what_a_failed_sync_lost_is_in_the_log_after_a_power_failure(broker_id: int, restarts: bool) -> None:
    """A sync fails on a leader or a follower, which opens its log again, by itself or since its process is started again,
    and goes on; and then its machine loses power."""
    with collector_off(), World(1) as world:
        cluster = SimCluster(world, ClusterSettings(snapshot_interval_bytes=2_000))
        judge, node = cluster.judge, broker_node(broker_id)
        medium = world.machine(node).disk

        async def produce_more() -> None:
            await produce(cluster, 40, bytes(100), within_s=60)
            await asyncio.sleep(1)  # snapshots are written meanwhile
            judge.sweep(cluster.replicas())

        def snapshots() -> list[str]:
            return [path for path, _ in medium.files() if path.endswith(".snapshot")]

        async def story() -> None:
            await create_topic(cluster, "orders")
            await all_in_sync(cluster)
            medium.faults.append(Fault(("sync",), errno.EIO, ".log"))
            await produce_more()
            assert medium.counters.faults == {"EIO on sync": 1}
            assert any("replica failed" in line and "fault on sync" in line for line in world.trace)
            before = snapshots()
            if restarts:
                world.kill(node)
                cluster.start(node)
                await asyncio.sleep(1)
            await all_in_sync(cluster)
            await produce_more()
            assert snapshots() > before
            world.power_failure(node)
            judge.lost_power([broker_id])
            judge.sweep(cluster.replicas())
            world.power_on(node)
            cluster.start(node)
            await asyncio.sleep(1)
            await all_in_sync(cluster)
            judge.sweep(cluster.replicas())
            assert judge.holds_all(next(iter(judge.records.values())), broker_id)

        cluster.start_all()
        world.run(story())
        cluster.database.close()
        assert world.failures() == []


def test_a_damaged_log_does_not_outlive_its_topic(cluster: SimCluster) -> None:
    """A topic of the same name finds no folder in its way."""
    world = cluster.world

    async def story() -> None:
        await create_topic(cluster, "orders")
        await all_in_sync(cluster)
        await produce(cluster)
        world.kill(broker_node(3))
        world.machine(broker_node(3)).disk.corrupt("/data/orders-0/00000000000000000000.log", 70)
        assert await cluster.ask_admin("DeleteTopic", controller_pb2.DeleteTopicRequest(name="orders")) == "ok"
        cluster.start(broker_node(3))
        await create_topic(cluster, "orders")
        await all_in_sync(cluster)
        assert any("log is damaged" in line for line in world.trace)

    play(cluster, story())


@pytest.mark.parametrize(
    "fault",
    [
        Fault(("read",), errno.EIO, "orders-1/partition.metadata"),
        Fault(("open",), errno.EIO, "orders-1/00000000000000000000.log"),
    ],
)
def test_a_log_that_cannot_be_read_at_the_start_is_read_when_the_disk_is_well(
    cluster: SimCluster, fault: Fault
) -> None:
    """The broker's other logs are served meanwhile. No other log is made in its place, and it joins without a restart."""
    world, judge, node = cluster.world, cluster.judge, broker_node(3)
    medium = world.machine(node).disk

    def folder(partition: int) -> list[tuple[str, bytes]]:
        return [(path, bytes(file.content)) for path, file in medium.files() if f"/orders-{partition}/" in path]

    async def story() -> None:
        await create_topic(cluster, "orders", partitions=2)
        await all_in_sync(cluster)
        await produce(cluster, 20, partitions=2)
        world.kill(node)
        held = folder(1)
        medium.faults.append(replace(fault, count=4))  # a start, and what is tried after it
        cluster.start(node)
        await asyncio.sleep(1)
        assert [index for _, index in cluster.brokers[3].manager.failed_replicas] == [1]
        assert [3 in partition.isr for partition in judge.image.partitions.values()] == [True, False]
        assert folder(1) == held
        (shown,) = [info for info in describe_log_dirs(cluster.brokers[3].manager, 3, 0.0).replicas if info.failure]
        assert (shown.partition, shown.failure) == (1, *cluster.brokers[3].manager.unopened.values())
        told = [line for line in world.trace if "log cannot be opened topic=orders partition=1" in line]
        await asyncio.sleep(15)
        assert not [line for line in world.trace if "isr refused" in line], "no one proposes what does not follow"
        await all_in_sync(cluster)
        assert cluster.brokers[3].manager.failed_replicas == []
        assert [line for line in world.trace if "log cannot be opened topic=orders partition=1" in line] == told
        judge.sweep(cluster.replicas())

    play(cluster, story())


@pytest.mark.parametrize("alone", [False, True])
def test_a_log_that_cannot_be_identified_any_more_is_made_again_once_another_replica_leads(
    cluster: SimCluster, alone: bool
) -> None:
    """Its `partition.metadata` is damaged: its records may be those of a topic of that name that is no more. `alone`: its
    broker was the last in sync; then it stays as it is until an operator has elected another."""
    world, judge, node = cluster.world, cluster.judge, broker_node(3)
    medium = world.machine(node).disk

    async def story() -> None:
        await create_topic(cluster, "orders")
        await all_in_sync(cluster)
        await produce(cluster)
        for other in (1, 2) if alone else ():
            world.kill(broker_node(other))
        await asyncio.sleep(2)
        world.kill(node)
        medium.file("/data/orders-0/partition.metadata").content[:] = bytes(50)
        held = sorted(medium.content("/data/orders-0").values())
        cluster.start(node)
        await asyncio.sleep(10)
        assert any("log is missing folder=/data/orders-0" in line for line in world.trace)
        if alone:
            (partition,) = judge.image.partitions.values()
            assert (partition.leader, partition.isr, partition.last_known_isr) == (-1, (), (3,))
            assert cluster.brokers[3].manager.unopened
            assert sorted(medium.content("/data/orders-0").values()) == held
            cluster.start(broker_node(1))
            cluster.start(broker_node(2))
            await asyncio.sleep(5)
            request = controller_pb2.ElectLeaderRequest(topic_name="orders", partition=0, unclean=True, leader=1)
            assert await cluster.ask_admin("ElectLeader", request) == "ok"
        await all_in_sync(cluster)
        judge.sweep(cluster.replicas())
        assert sorted(medium.content("/data/orders-0.0.damaged").values()) == held
        assert not cluster.brokers[3].manager.unopened

    play(cluster, story())


@pytest.mark.parametrize("taken_by", ["a log of no one", "a copy of another log"])
def test_what_is_in_a_logs_place_is_set_aside_once_another_replica_leads(cluster: SimCluster, taken_by: str) -> None:
    """The catalogue does not know of it: a power failure took its line, or the broker had no such log before."""
    world, judge, node = cluster.world, cluster.judge, broker_node(3)
    medium = world.machine(node).disk

    async def story() -> None:
        await create_topic(cluster, "orders", partitions=2)
        await all_in_sync(cluster)
        await produce(cluster, 20, partitions=2)
        world.kill(node)
        await asyncio.sleep(2)
        medium.folder("/data").put({"orders-1": None})
        medium.folder("/data").put({"replicas": None})
        if taken_by == "a log of no one":
            medium.put_back("/data/orders-1", medium.copy_of("/data/orders-0"))
            medium.folder("/data/orders-1").put({"partition.metadata": None})
        else:
            medium.put_back("/data/orders-1", medium.copy_of("/data/orders-0"))
        held = sorted(medium.content("/data/orders-1").values())
        cluster.start(node)
        await asyncio.sleep(2)
        await all_in_sync(cluster)
        judge.sweep(cluster.replicas())
        assert sorted(medium.content("/data/orders-1.0.damaged").values()) == held
        assert not cluster.brokers[3].manager.failed_replicas

    play(cluster, story())


def test_a_folder_of_the_last_replica_in_sync_is_not_led_from_where_its_log_is_gone(cluster: SimCluster) -> None:
    """An empty log in its place would be the truth for the others, who have everything."""
    world, judge, node = cluster.world, cluster.judge, broker_node(3)
    medium = world.machine(node).disk

    async def story() -> None:
        await create_topic(cluster, "orders")
        await all_in_sync(cluster)
        await produce(cluster)
        for other in (1, 2, 3):
            world.kill(broker_node(other))
            await asyncio.sleep(2)
        medium.folder("/data").put({"orders-0": None})
        for broker_id in (3, 1, 2):
            cluster.start(broker_node(broker_id))
            await asyncio.sleep(2)
        (partition,) = judge.image.partitions.values()
        assert (partition.leader, partition.isr, partition.last_known_isr) == (-1, (), (3,))
        request = controller_pb2.ElectLeaderRequest(topic_name="orders", partition=0, unclean=True, leader=1)
        assert await cluster.ask_admin("ElectLeader", request) == "ok"
        await all_in_sync(cluster)
        judge.sweep(cluster.replicas())

    play(cluster, story())


def test_a_leader_that_cannot_read_its_log_hands_over_to_one_that_can() -> None:
    with collector_off(), World(1) as world:
        cluster = SimCluster(world, ClusterSettings(tail_bytes=0))
        read: list[int] = []

        async def consume(host: Host, disk: MountedDisk) -> None:
            async with Consumer(cluster.bootstrap, host=host) as consumer:
                await consumer.assign([("orders", 0)])
                async for record in consumer:
                    read.append(record.offset)
                    if len(read) == 20:
                        return

        async def story() -> None:
            await create_topic(cluster, "orders")
            await all_in_sync(cluster)
            await produce(cluster, 20)
            (partition,) = cluster.judge.image.partitions.values()
            medium = world.machine(broker_node(partition.leader)).disk
            medium.faults.append(Fault(("read",), errno.EIO, "orders-0", count=1_000_000))
            await ended(world.start("app", consume), within_s=30)
            assert read == list(range(20))
            assert medium.counters.faults["EIO on read"] < 10
            (later,) = cluster.judge.image.partitions.values()
            assert later.leader not in (-1, partition.leader)

        cluster.start_all()
        world.run(story())
        cluster.database.close()
        assert world.failures() == []


def test_a_change_that_waits_for_the_controller_says_so_once_and_asks_ever_more_seldom(
    cluster: SimCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word a user takes it for a command that hangs."""
    world = cluster.world
    asked: dict[str, list[float]] = {}
    told: dict[str, float] = {}
    call_admin = ClusterClient.call_admin

    def counted(self: ClusterClient, method: Any, request: Any, **rest: Any) -> Any:
        asked.setdefault(type(request).__name__.removesuffix("Request"), []).append(world.now)
        return call_admin(self, method, request, **rest)

    def heard(record: logging.LogRecord) -> bool:
        if "still asking" in record.getMessage():
            name = record.getMessage().partition("request=")[2].partition(" ")[0]
            assert name not in told, "once"
            told[name] = world.now
        return True

    async def operator(host: Host, disk: MountedDisk) -> None:
        async with AdminClient(cluster.bootstrap, host=host) as admin:
            changes = [
                admin.create_topic("made"),
                admin.delete_topic("orders"),
                admin.reassign_partitions("kept", {0: (3, 1)}),
                admin.elect_leader("kept", 0),
                admin.remove_producer_name("no one"),
                admin.list_producer_names(),
            ]
            results = await asyncio.gather(*changes, return_exceptions=True)
            refused = {type(result) for result in results if isinstance(result, BaseException)}
            assert refused <= {ElectionNotNeeded, InvalidRequest}  # each was answered in the end

    async def story() -> None:
        await create_topic(cluster, "orders")
        await create_topic(cluster, "kept")
        await all_in_sync(cluster)
        world.kill(CONTROLLER)
        began = world.now
        process = world.start("operator", operator)
        await asyncio.sleep(20)
        cluster.start(CONTROLLER)
        await ended(process, within_s=12)
        assert asked.keys() == told.keys()
        assert len(told) == 6
        assert all(WARN_AFTER_S <= at - began < WARN_AFTER_S + 3 for at in told.values())
        for times in asked.values():
            rounds = times[::3]  # three brokers each
            assert 5 < len(rounds) < 30
            assert rounds[1] - rounds[0] < 0.5

    monkeypatch.setattr(ClusterClient, "call_admin", counted)
    monkeypatch.setattr(logging.getLogger("fencepost.attempts"), "filters", [heard])
    play(cluster, story())
