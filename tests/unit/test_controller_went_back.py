"""A controller whose store has gone back serves no one; and before it serves anyone, it listens."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TypeVar

import pytest

from fencepost_controller.commands import Committed
from fencepost_controller.config import ControllerConfig
from fencepost_controller.controller import Controller
from fencepost_controller.decisions.brokers import RegisterBroker
from fencepost_controller.decisions.draft import Command
from fencepost_controller.decisions.lineage import MetadataWentBack
from fencepost_controller.opening import Opening, expected
from fencepost_controller.seldom import Seldom
from fencepost_controller.store.sqlite import SqliteStore
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import BrokerRegistration
from fencepost_proto.protocol.v1 import controller_pb2
from fencepost_proto.runtime.host import Host
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.controller_cluster import (
    LONG_TIMEOUT_MS,
    SHORT_TIMEOUT_MS,
    FakeBroker,
    cluster,
    create_topic,
    in_memory,
    run,
    running,
    stubs,
)

T = TypeVar("T")


@asynchronous
async def test_a_broker_that_knows_more_than_the_store_ends_the_controller_and_nothing_that_waits_is_decided() -> None:
    config = ControllerConfig(data_dir="unused", session_timeout_ms=LONG_TIMEOUT_MS)
    controller = Controller(config, Host(), in_memory())
    await controller.start()
    async with cluster(controller) as brokers:
        await brokers.live(1)
        version = controller.image.version
        ahead = await brokers.new(2)
        ahead.cluster_id = controller.image.cluster_id
        ahead.known = (version + 1, 77, controller.image.lineage.oldest_id)
        await ahead.connect(controller)
        assert isinstance(ahead.error, errors.NotController)
        assert f"it is at metadata version {version}, and broker 2 knows version {version + 1}" in str(ahead.error)
        with pytest.raises(MetadataWentBack):
            await controller.failure.wait()
        with pytest.raises(errors.NotController):
            await create_topic(controller, "late", (1,))
        assert controller.image.version == version
        await controller.stop(clean=False)


def test_a_stranger_that_claims_a_version_is_refused_and_the_log_says_so_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Versions and the cluster's id are shown to every client; the ids of lineages are not."""

    async def test() -> None:
        async with running() as controller, cluster(controller) as brokers:
            (one,) = await brokers.live(1)
            for number in range(20):
                stranger = await brokers.new(1 + number % 3)  # an id in use, too
                stranger.cluster_id = controller.image.cluster_id
                stranger.known = (2**62, 77, 78)
                await stranger.connect(controller)
                assert isinstance(stranger.error, errors.InvalidRequest)
                assert "knows none of its lineages" in str(stranger.error)
            assert one.epoch == controller.image.brokers[1].broker_epoch
            await create_topic(controller, "served", (1,))
            assert not one.ended.is_set()

    with caplog.at_level(logging.ERROR):
        run(test())
    told = [record for record in caplog.records if record.name.startswith("fencepost")]  # not what gRPC says of an end
    assert [record.getMessage().split(" reason=")[0] for record in told] == ["registration refused"]


def test_what_others_bring_about_is_logged_once_in_a_while_and_the_rest_is_counted() -> None:
    seldom = Seldom(10.0)
    assert [now for now in range(35) if seldom.is_due(float(now))] == [0, 10, 20, 30]
    assert seldom.skipped() == 31
    assert seldom.skipped() == 0


@asynchronous
async def test_an_answer_names_the_version_that_it_rests_on() -> None:
    async with running() as controller, cluster(controller) as brokers, stubs(controller) as (stub, _):
        (one,) = await brokers.live(1)
        assert one.registered is not None
        lineage = controller.image.lineage.current_id
        assert one.registered.lineage_id == lineage > 0
        answer = await stub.AllocateProducerIds(
            controller_pb2.AllocateProducerIdsRequest(broker_id=1, broker_epoch=one.epoch)
        )
        assert (answer.metadata_version, answer.lineage_id) == (controller.image.version, lineage)


@asynchronous
async def test_after_its_start_the_controller_decides_nothing_before_its_live_brokers_have_come(tmp_path: Path) -> None:
    path = str(tmp_path / "metadata.sqlite")
    async with running(SqliteStore(path)) as controller, cluster(controller) as brokers:
        one, two = await brokers.live(1, 2)
        await controller.stop(clean=True)
        async with running(SqliteStore(path)) as second, stubs(second) as (stub, _):
            version = second.image.version
            request = controller_pb2.AllocateProducerIdsRequest(broker_id=1, broker_epoch=one.epoch)
            asked = asyncio.ensure_future(stub.AllocateProducerIds(request, wait_for_ready=True))
            first = asyncio.create_task(one.connect(second))
            await asyncio.sleep(0.2)
            assert not asked.done()
            assert not first.done()
            assert second.image.version == version
            await two.connect(second)
            await first
            assert (await asked).count > 0


@asynchronous
async def test_a_broker_that_does_not_come_is_waited_for_no_longer_than_its_session_timeout(tmp_path: Path) -> None:
    path = str(tmp_path / "metadata.sqlite")
    async with running(SqliteStore(path)) as controller, cluster(controller) as brokers:
        one, _ = await brokers.live(1, 2)
        await controller.stop(clean=True)
        async with running(SqliteStore(path), session_timeout_ms=SHORT_TIMEOUT_MS) as second:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await one.connect(second)
            assert SHORT_TIMEOUT_MS / 1000 * 0.8 < loop.time() - began < 8
            await until(lambda: second.image.brokers[2].fenced, "broker 2 fenced")
            assert not second.image.brokers[1].fenced  # it waited, and was not silent


@asynchronous
async def test_a_broker_that_came_in_time_is_not_dead_for_its_wait_until_others_did_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can send no heartbeat before its registration is answered, and that had to wait for the other one's time."""
    path = str(tmp_path / "metadata.sqlite")
    async with running(SqliteStore(path)) as controller, cluster(controller) as brokers:
        one, _ = await brokers.live(1, 2)
        await controller.stop(clean=True)
        async with running(SqliteStore(path), session_timeout_ms=SHORT_TIMEOUT_MS) as second:
            commands = second.reign().commands

            async def behind_others(command: Command[T]) -> Committed[T]:
                if isinstance(command, RegisterBroker):
                    await asyncio.sleep(0.1)  # some ticks of the watch
                return await submit(command)

            submit = commands.submit
            monkeypatch.setattr(commands, "submit", behind_others)
            version = second.image.version
            await one.connect(second)
            assert second.image.brokers[2].fenced
            assert second.image.version == version + 1, "and nothing else has changed"


async def begins_to_register(broker: FakeBroker, controller: Controller) -> None:
    """The controller has heard of it, and has not answered."""
    connecting = asyncio.create_task(broker.connect(controller))
    opening = controller.reign().sessions.opening
    await until(lambda: broker.broker_id not in opening._missing, f"broker {broker.broker_id} to be there")
    connecting.cancel()
    await asyncio.wait([connecting])


@asynchronous
async def test_a_broker_that_came_late_and_whose_stream_broke_has_time_to_come_again(tmp_path: Path) -> None:
    path = str(tmp_path / "metadata.sqlite")
    async with running(SqliteStore(path)) as controller, cluster(controller) as brokers:
        one, _ = await brokers.live(1, 2)
        await controller.stop(clean=True)
        async with running(SqliteStore(path), session_timeout_ms=3_000) as second:
            await asyncio.sleep(1.5)
            await begins_to_register(one, second)
            await one.stream_breaks()
            await until(lambda: second.image.brokers[2].fenced, "broker 2 fenced")
            await asyncio.sleep(0.3)  # three ticks
            assert not second.image.brokers[1].fenced


@asynchronous
async def test_a_broker_that_dies_while_its_registration_waits_is_found_dead_at_once_then(tmp_path: Path) -> None:
    path = str(tmp_path / "metadata.sqlite")
    async with running(SqliteStore(path)) as controller, cluster(controller) as brokers:
        one, two, _ = await brokers.live(1, 2, 3)
        topic_id = await create_topic(controller, "a", (1, 2))
        await controller.stop(clean=True)
        async with running(SqliteStore(path), session_timeout_ms=4_000) as second:
            began = asyncio.get_running_loop().time()
            other = asyncio.create_task(two.connect(second))
            await asyncio.sleep(2)
            await begins_to_register(one, second)
            await one.killed()
            await other  # 3 did not come
            await until(lambda: second.image.partitions[topic_id, 0].leader == 2, "a new leader")
            assert asyncio.get_running_loop().time() - began < 5.5  # its silence alone would be too long at 6


@asynchronous
async def test_a_new_life_is_no_sign_of_the_old_one_after_the_controllers_start(tmp_path: Path) -> None:
    """Which leads, and is dead or cut off: it has one session timeout, not another one after the wait for others."""
    path = str(tmp_path / "metadata.sqlite")
    async with running(SqliteStore(path)) as controller, cluster(controller) as brokers:
        old = await brokers.new(1, paused=True)
        await old.connect(controller)
        await brokers.unfenced(old)
        two, _ = await brokers.live(2, 3)
        topic_id = await create_topic(controller, "a", (1, 2))
        await controller.stop(clean=True)
        async with running(SqliteStore(path), session_timeout_ms=2_000) as second:
            began = asyncio.get_running_loop().time()
            new = await brokers.new(1, "life 2")
            new.cluster_id = second.image.cluster_id
            registering = asyncio.create_task(new.connect(second))
            await two.connect(second)  # and 3 does not come
            await until(lambda: second.image.partitions[topic_id, 0].leader == 2, "a new leader")
            assert asyncio.get_running_loop().time() - began < 3.5
            await registering


def broker(broker_id: int, *, fenced: bool) -> BrokerRegistration:
    return BrokerRegistration(broker_id, "h:1", 1, "x", fenced=fenced)


def test_the_live_brokers_are_waited_for_and_all_where_none_is_live() -> None:
    assert expected([]) == frozenset()
    assert expected([broker(1, fenced=False), broker(2, fenced=True)]) == {1}
    assert expected([broker(1, fenced=True), broker(2, fenced=True)]) == {1, 2}


@asynchronous
async def test_a_registration_that_tells_of_a_loss_and_broke_off_before_is_waited_for_again() -> None:
    opening, died = Opening(), asyncio.Event()

    async def declare_dead(broker_ids: frozenset[int]) -> None:
        died.set()

    opening.start([broker(1, fenced=False), broker(2, fenced=False)], timeout_s=0.05)
    with opening.loss():
        pass  # its stream broke
    running = asyncio.create_task(opening.run(declare_dead))
    with opening.loss():
        opening.heard(1)
        await opening.wait_for_losses()
        await asyncio.sleep(0)
        assert not died.is_set()
    await asyncio.wait_for(opening.wait(), 1)
    assert died.is_set()
    await running


@asynchronous
async def test_a_controller_without_brokers_opens_at_once() -> None:
    opening = Opening()
    opening.start([], timeout_s=100)
    await asyncio.wait_for(opening.wait(), 1)
