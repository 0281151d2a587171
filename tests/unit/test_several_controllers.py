"""Several controllers on one etcd: one decides, the others know what it knows, and one of them goes on where it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fencepost_controller.candidacy import Candidacy
from fencepost_controller.config import ControllerConfig
from fencepost_controller.controller import Controller
from fencepost_controller.decisions.lineage import MetadataWentBack
from fencepost_controller.metrics import ControllerMetrics
from fencepost_controller.store.etcd.layout import Leader
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.v1 import controller_pb2, controller_pb2_grpc
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.carriers.carrier_wire import CarrierWire
from fencepost_proto.transport.latencies import CallCounts
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.controller_cluster import FakeBroker, create_topic
from tests.unit.etcd_world import PREFIX, EtcdWorld, etcd_world
from tests.unit.fake_controller import fake_controller
from tests.unit.test_session import me, node_of

TIMEOUT_MS = 1_000


class Controllers:
    """Those of one cluster, in this process."""

    def __init__(self, world: EtcdWorld) -> None:
        self.world = world
        self.all: list[Controller] = []

    async def start(self) -> Controller:
        number = len(self.all) + 1
        config = ControllerConfig(
            data_dir="unused",
            store="etcd",
            controller_id=number,
            etcd_endpoints=",".join(self.world.addresses),
            etcd_prefix=PREFIX.decode(),
            session_timeout_ms=TIMEOUT_MS,
            heartbeat_interval_ms=50,
        )
        controller = Controller(config, Host(), self.world.shared())
        self.all.append(controller)
        await controller.start()
        return controller

    async def active(self, *, but: Controller | None = None) -> Controller:
        """The one that decides, once there is one."""
        found = await until(
            lambda: next((one for one in self.all if one.is_active and one is not but), None), "an active controller"
        )
        assert isinstance(found, Controller)
        return found

    async def kill(self, controller: Controller) -> None:
        """As much like a kill as this process can: ports and streams are gone, the lease is not given up."""
        self.all.remove(controller)
        await controller._tasks.close()
        assert controller._server is not None
        await controller._server.server.stop(0)
        reign = controller._reign
        if reign is not None:
            await reign.step_down(errors.NotController("killed"))

    @property
    def bootstrap(self) -> str:
        return ",".join(one.address for one in self.all)


@asynccontextmanager
async def controllers(count: int = 2, etcd_members: int = 1) -> AsyncIterator[Controllers]:
    async with etcd_world(etcd_members) as world:
        group = Controllers(world)
        try:
            for _ in range(count):
                await group.start()
            await group.active()
            yield group
        finally:
            for one in group.all:
                await one.stop(clean=True)


def same_image(one: Controller, other: Controller) -> bool:
    return one.image == other.image


async def ask(controller: Controller, name: str = "a-topic") -> controller_pb2.CreateTopicResponse:
    channel = CarrierWire().connect(controller.address)
    try:
        stub: controller_pb2_grpc.AdminAsyncStub = controller_pb2_grpc.AdminStub(channel)
        request = controller_pb2.CreateTopicRequest(name=name, partitions=1, replication_factor=1)
        return await stub.CreateTopic(request, timeout=5)
    finally:
        await channel.close()


@asynchronous
async def test_one_decides_and_the_others_follow_and_name_it() -> None:
    async with controllers(3) as group:
        active = await group.active()
        broker = await FakeBroker(1).start()
        await broker.connect(active)
        assert broker.registered is not None
        assert broker.registered.controller_epoch == active.epoch > 0
        await until(lambda: not active.image.brokers[1].fenced, "the broker is live")
        answer = await ask(active)
        assert (answer.error.code, answer.controller_epoch) == (0, active.epoch)
        for standby in group.all:
            if standby is active:
                continue
            await until(partial(same_image, standby, active), "the standby has everything")
            refused = await ask(standby)
            assert refused.error.code == errors.ErrorCode.NOT_CONTROLLER
            assert refused.error.current_leader.address == active.address
            other = FakeBroker(2)
            other.address = "127.0.0.1:9"
            await other.connect(standby)
            assert isinstance(other.error, errors.NotController)
            await other.stream_breaks()
        await broker.killed()


@asynchronous
async def test_a_clean_stop_hands_over_at_once() -> None:
    async with controllers(2) as group:
        active = await group.active()
        began = time.monotonic()
        group.all.remove(active)
        await active.stop(clean=True)
        new = await group.active()
        assert time.monotonic() - began < 1.5  # of a lease of 3 s
        assert new.epoch > active.config.controller_id


@asynchronous
async def test_a_killed_controller_is_replaced_at_once_and_a_broker_that_died_with_it_too() -> None:
    async with controllers(2) as group:
        active = await group.active()
        one, two = await FakeBroker(1).start(), await FakeBroker(2).start()
        for broker in (one, two):
            await broker.connect(active)
        await until(lambda: not any(b.fenced for b in active.image.brokers.values()), "both are live")
        topic_id = await create_topic(active, "t", (1, 2))
        version = active.image.version
        standby = next(c for c in group.all if c is not active)
        await until(lambda: standby.image.version == version, "the standby has everything")
        await asyncio.sleep(TIMEOUT_MS / 1000)  # followed for a session timeout: the active one has heard the brokers
        await one.killed()
        await group.kill(active)
        began = time.monotonic()
        new = await group.active()
        await until(lambda: new.image.partitions[topic_id, 0].leader == 2, "broker 2 leads")
        assert time.monotonic() - began < TIMEOUT_MS / 1000  # no timeout was waited for
        await two.connect(new)
        assert two.registered is not None
        assert two.registered.controller_epoch > active.epoch
        await two.killed()


@asynchronous
async def test_brokers_find_the_active_one_and_the_next(tmp_path: Path) -> None:
    async with controllers(3) as group:
        active = await group.active()
        standbys = [one.address for one in group.all if one is not active]
        async with node_of(",".join([*standbys, active.address]), tmp_path) as (node, _):
            await until(lambda: node.session.registered, "a session")
            assert (node.link.address, node.link.controller_epoch) == (active.address, active.epoch)
            await node.session.was_ready.wait()
            await group.kill(active)
            new = await group.active()
            await until(lambda: node.link.controller_epoch == new.epoch and node.session.registered, "the next one")
            ids = await node.link.allocate_producer_ids()
            assert new.image.next_ids.next_id >= ids.stop


@asynchronous
async def test_a_controller_whose_lease_is_lost_steps_down_and_stands_by() -> None:
    async with controllers(1) as group:
        one = await group.active()
        epoch, reign = one.epoch, one.reign()
        broker = await FakeBroker(1).start()
        await broker.connect(one)
        group.world.cluster.revoke(next(iter(group.world.cluster.leases)))
        await until(lambda: one.is_active and one.epoch != epoch, "it decides again, under another epoch")
        assert one.reign() is not reign
        await until(broker.ended.is_set, "the session's end")
        assert isinstance(broker.error, errors.NotController)
        assert not one.failure.happened
        await broker.killed()


@asynchronous
async def test_what_changes_nothing_is_confirmed_before_it_is_answered() -> None:
    """The leader key is another's, and this controller has not noticed."""
    async with controllers(1) as group:
        one = await group.active()
        epoch = one.epoch
        cluster = group.world.cluster
        stolen = cluster.keys.pop(group.world.keys.leader)  # and no watch is told
        answer = await ask(one, "no-brokers-for-it")
        assert answer.error.code == errors.ErrorCode.NOT_CONTROLLER, stolen
        await until(lambda: one.is_active and one.epoch != epoch, "it stands by, and takes over")
        assert (await ask(one, "no-brokers-for-it")).error.code == errors.ErrorCode.INVALID_REPLICATION_FACTOR


@asynchronous
async def test_a_controller_that_is_behind_because_another_one_decides_is_not_taken_for_one_whose_store_went_back() -> (
    None
):
    """The leader key is another's, this controller has not noticed, and a broker knows what the other one has committed."""
    async with controllers(1) as group:
        one = await group.active()
        epoch, image = one.epoch, one.image
        group.world.cluster.keys.pop(group.world.keys.leader)  # and no watch is told
        broker = await FakeBroker(1).start()
        broker.cluster_id = image.cluster_id
        broker.known = (image.version + 1, 77, image.lineage.oldest_id)
        await broker.connect(one)
        assert isinstance(broker.error, errors.NotController)
        await until(lambda: one.is_active and one.epoch != epoch, "it stands by, and takes over")
        assert not one.failure.happened
        await broker.killed()


@asynchronous
async def test_a_controller_without_a_majority_of_etcd_steps_down_and_comes_back() -> None:
    async with controllers(2) as group:
        active = await group.active()
        group.world.cluster.majority(False)
        await until(lambda: not any(one.is_active for one in group.all), "no one decides")
        assert (await ask(active)).error.code == errors.ErrorCode.NOT_CONTROLLER
        group.world.cluster.majority(True)
        await group.active()


@asynchronous
async def test_an_etcd_that_was_restored_from_a_backup_ends_every_controller_that_knows_better() -> None:
    async with controllers(2) as group:
        active = await group.active()
        backup = group.world.cluster.back_up()
        broker = await FakeBroker(1).start()
        await broker.connect(active)
        await until(lambda: len({one.image.version for one in group.all}) == 1, "both know everything")
        group.world.cluster.majority(False)  # the members stop
        group.world.cluster.restore(backup)
        await until(lambda: not active.is_active, "no one decides")
        group.world.cluster.majority(True)
        for one in group.all:
            with pytest.raises(MetadataWentBack, match="has gone back"):
                await asyncio.wait_for(one.failure.wait(), 10)
        await broker.killed()


@asynchronous
async def test_metrics_say_who_is_active() -> None:
    async with controllers(2) as group:
        active = await group.active()
        for one in group.all:
            metrics = ControllerMetrics(one._standing, one._counts.commits, one._counts.elections, CallCounts())
            values = {family.name: family async for family in metrics.families()}
            active_now, epoch = (values[f"fencepost_controller_{name}"].samples[0][-1] for name in ("active", "epoch"))
            assert (active_now, epoch) == (int(one is active), one.epoch)


# ---- Brokers and controller epochs ----


@asynchronous
async def test_an_answer_of_an_older_controller_epoch_is_refused(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (node, _):
        stream = await controller.session(0)
        await _registered(stream, 5, controller_epoch=8)
        await stream.image(5, me(5))
        await stream.acknowledged(5)
        controller.answers["AllocateProducerIds"] = _ids(epoch=7)
        with pytest.raises(errors.NotController, match="under controller epoch 7, and broker 7 has seen 8"):
            await node.link.allocate_producer_ids()
        controller.answers["AllocateProducerIds"] = _ids(epoch=8)
        assert len(await node.link.allocate_producer_ids()) == 10
        controller.answers["AllocateProducerIds"] = _ids(epoch=9)
        await node.link.allocate_producer_ids()
        await stream.metadata(6)  # the session's epoch is an older one now
        again = await controller.session(1)
        await _registered(again, 6, controller_epoch=8)
        third = await controller.session(2)
        await _registered(third, 6, controller_epoch=9)
        await until(lambda: node.session.registered, "a session under the newest epoch")


def _ids(epoch: int) -> controller_pb2.AllocateProducerIdsResponse:
    return controller_pb2.AllocateProducerIdsResponse(count=10, metadata_version=5, controller_epoch=epoch)


async def _registered(stream: object, version: int, controller_epoch: int) -> None:
    registered = controller_pb2.Registered(
        broker_epoch=5,
        cluster_id="the-cluster",
        session_timeout_ms=3_000,
        heartbeat_interval_ms=20,
        metadata_version=version,
        controller_epoch=controller_epoch,
    )
    await stream._context.write(controller_pb2.SessionResponse(registered=registered))  # type: ignore[attr-defined]


@asynchronous
async def test_a_controller_that_takes_connections_and_says_nothing_is_passed_over(tmp_path: Path) -> None:
    silent = FakeBroker(1).start_paused()
    async with (
        fake_controller() as controller,
        node_of(f"{silent.address},{controller.address}", tmp_path) as (node, _),
    ):
        began = time.monotonic()
        stream = await controller.session(0)
        assert time.monotonic() - began < 5  # not the patience of a registration
        await stream.registered(5)
        await until(lambda: node.session.registered, "a session")
    await silent.stop_listening()


@asynchronous
async def test_a_session_whose_controller_gives_no_sign_of_life_is_left(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(f"{controller.address},127.0.0.1:1", tmp_path) as (node, _):
        stream = await controller.session(0)
        await stream.registered(5)
        await until(lambda: node.session.registered, "a session")

        async def no_answer() -> None:
            raise errors.RequestTimedOut("it is paused")

        node.link.check_alive = no_answer  # type: ignore[method-assign]
        await until(lambda: not node.session.registered, "the session is left")


@asynchronous
async def test_the_list_of_controllers_is_gone_through_once_between_two_pauses() -> None:
    from fencepost_node.controller_link import ControllerLink

    link = ControllerLink(Host(), "a:1, b:2,c:3", 1)
    assert link.address == "a:1"
    assert link.move_on(hint="a:1")  # the one that has just failed
    assert link.address == "b:2"
    assert link.move_on(hint="elsewhere:4")  # not in the list, but active
    assert link.address == "elsewhere:4"
    assert link.move_on(hint="no address")
    assert link.address == "c:3"
    assert not link.move_on()  # all were asked
    assert link.move_on()
    link.serves()
    alone = ControllerLink(Host(), "a:1", 1)
    assert not alone.move_on(hint="elsewhere:4")
    assert alone.address == "a:1"
    await link.close()
    await alone.close()


@asynchronous
async def test_a_registration_does_not_wait_for_a_verdict_of_a_controller_that_has_stepped_down() -> None:
    async with controllers(2) as group:
        active = await group.active()
        old, new = FakeBroker(1, "life 1").start_paused(), await FakeBroker(1, "life 2").start()
        try:
            await old.connect(active)
            await until(lambda: not active.image.brokers[1].fenced, "broker 1 unfenced")
            registering = asyncio.create_task(new.connect(active))
            await until(lambda: active.reign().sessions.session_count, "its session")
            await asyncio.sleep(0.2)  # it is probed
            reign = active.reign()
            await reign.step_down(errors.NotController("another one may decide"))
            await registering
            assert isinstance(new.error, errors.NotController)
        finally:
            await old.killed()
            await new.killed()


class OddHealth(health_pb2_grpc.HealthServicer):
    """Of a process in trouble: a stream stands and breaks, and a question gets an answer that says nothing."""

    def __init__(self) -> None:
        self.streams = 0

    async def Watch(self, request: object, context: object) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        self.streams += 1
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Check(self, request: object, context: Any) -> None:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no memory")


@asynchronous
async def test_streams_to_the_active_controller_that_break_at_once_are_tried_with_growing_pauses() -> None:
    server, health = grpc.aio.server(), OddHealth()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    candidacy = Candidacy.__new__(Candidacy)
    candidacy._host = Host()
    task = asyncio.create_task(candidacy._until_dead(Leader(1, f"127.0.0.1:{port}", "x" * 22)))
    try:
        await asyncio.wait([task], timeout=1.5)
        assert 3 <= health.streams <= 25
    finally:
        task.cancel()
        await asyncio.wait([task])
        await server.stop(0)
