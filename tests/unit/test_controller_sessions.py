"""Sessions over real gRPC: registration, metadata in order, and who is found dead how fast."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from fencepost_controller import session_registry as sessions_module
from fencepost_controller.fences import Fences
from fencepost_controller.opening import LOSSES_WITHIN_S
from fencepost_controller.probe import ProbeVerdict
from fencepost_controller.probe import probe as real_probe
from fencepost_controller.store import CommitFailed
from fencepost_controller.store.sqlite import SqliteStore
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.lineage import Lineage
from fencepost_proto.protocol.metadata import (
    FIRST_NAMED_ID,
    NO_LEADER,
    Changes,
    Entity,
    MetadataImage,
)
from fencepost_proto.protocol.request_limits import MAX_PROPOSALS
from fencepost_proto.protocol.v1 import broker_pb2, controller_pb2
from fencepost_proto.transport.wire import Wire
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.controller_cluster import (
    DEADLINE_S,
    LONG_TIMEOUT_MS,
    SHORT_TIMEOUT_MS,
    FakeBroker,
    cluster,
    create_topic,
    in_memory,
    running,
    stubs,
)

# ---- Registration and metadata ----


@asynchronous
async def test_a_session_begins_with_the_registration_and_an_image_and_goes_on_in_version_order() -> None:
    async with running() as controller, cluster(controller) as brokers:
        one, two = await brokers.live(1, 2)
        for name in ("a", "b", "c"):
            await create_topic(controller, name, (1, 2))
        for broker in (one, two):
            await until(lambda b=broker: b.image == controller.image, "the broker has all metadata")  # type: ignore[misc]
            first = broker.versions[0]
            assert broker.versions == list(range(first, controller.image.version + 1))
            assert broker.images == 1
            assert first >= broker.epoch
        assert one.registered is not None
        assert one.registered.cluster_id == controller.image.cluster_id
        assert one.registered.session_timeout_ms == LONG_TIMEOUT_MS


@asynchronous
async def test_a_broker_that_is_removed_while_it_registers_gets_an_error_and_the_controller_goes_on() -> None:
    async with running() as controller, cluster(controller) as brokers:
        (one,) = await brokers.live(1)
        two = await brokers.new(2)
        two.ready = False
        await two.connect(controller)
        async with stubs(controller) as (_, admin):
            answer = await admin.UnregisterBroker(controller_pb2.UnregisterBrokerRequest(broker_id=1))
            assert answer.error.code == errors.InvalidRequest.code
            answer = await admin.UnregisterBroker(controller_pb2.UnregisterBrokerRequest(broker_id=2))
            assert not answer.error.code
        await until(lambda: two.error is not None, "its session has ended")
        assert "broker 2 has been removed" in str(two.error)
        await create_topic(controller, "a", (1,))
        await until(lambda: one.image == controller.image, "broker 1 has all metadata")
        assert 2 not in one.image.brokers


@asynchronous
async def test_a_broker_that_registers_again_and_again_and_does_nothing_more_is_declared_dead() -> None:
    async with running(session_timeout_ms=SHORT_TIMEOUT_MS) as controller, cluster(controller) as brokers:
        (one,) = await brokers.live(1)

        async def registers_again() -> None:
            while True:
                await one.stream_breaks()
                one.falls_silent_at_once = True
                await one.connect(controller)
                await asyncio.sleep(SHORT_TIMEOUT_MS / 10_000)

        again = asyncio.create_task(registers_again())
        try:
            await until(lambda: controller.image.brokers[1].fenced, "it is declared dead")
        finally:
            again.cancel()
            await asyncio.wait([again])


@asynchronous
async def test_a_broker_that_registers_again_and_again_and_applies_nothing_is_declared_dead() -> None:
    """Its heartbeats are signs of life; that it has a session again is no progress."""
    async with running(session_timeout_ms=SHORT_TIMEOUT_MS) as controller, cluster(controller) as brokers:
        one, _ = await brokers.live(1, 2)
        one.applies = False
        topic_id = await create_topic(controller, "a", (1, 2))

        async def registers_again() -> None:
            while True:
                await one.stream_breaks()
                await one.connect(controller)
                await asyncio.sleep(SHORT_TIMEOUT_MS / 2_000)

        again = asyncio.create_task(registers_again())
        try:
            await until(lambda: controller.image.brokers[1].fenced, "it is declared dead")
            assert controller.image.partitions[topic_id, 0].leader == 2
        finally:
            again.cancel()
            await asyncio.wait([again])


@asynchronous
async def test_one_broker_is_probed_by_one_task_however_often_its_stream_breaks() -> None:
    async with running() as controller, cluster(controller) as brokers:
        one = await brokers.new(1, paused=True)
        await one.connect(controller)
        await brokers.unfenced(one)
        for _ in range(10):
            await one.stream_breaks()
            await until(lambda: not controller.reign().sessions.session_count, "the session's end")
            await one.connect(controller)
        await one.stream_breaks()
        await until(lambda: not controller.reign().sessions.session_count, "the session's end")
        assert sum(task.get_name() == "probe broker 1" for task in asyncio.all_tasks()) == 1


@asynchronous
async def test_failed_replicas_of_a_broker_are_forgotten_with_it() -> None:
    async with running() as controller, cluster(controller) as brokers, stubs(controller) as (_, admin):
        one, _ = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", (1, 2))
        one.failed = [(topic_id, 0)]
        one.says()
        sessions = controller.reign().sessions
        await until(lambda: sessions.failed_replica_count == 1, "a failed replica")
        await one.killed()
        await until(lambda: controller.image.brokers[1].fenced, "broker 1 fenced")
        errors.raise_for((await admin.DeleteTopic(controller_pb2.DeleteTopicRequest(name="a"))).error)
        errors.raise_for((await admin.UnregisterBroker(controller_pb2.UnregisterBrokerRequest(broker_id=1))).error)
        assert sessions.failed_replica_count == 0


@asynchronous
async def test_heartbeats_write_nothing() -> None:
    async with running() as controller, cluster(controller) as brokers:
        (one,) = await brokers.live(1)
        version = controller.image.version
        for _ in range(20):
            one.says()
            await asyncio.sleep(0.002)
        assert controller.image.version == version == 3  # the cluster's id, the registration, unfenced


@asynchronous
async def test_a_broker_is_unfenced_when_it_is_ready_and_has_applied_its_image() -> None:
    async with running() as controller, cluster(controller) as brokers:
        broker = await brokers.new(1)
        broker.ready = False
        await broker.connect(controller)
        await until(lambda: broker.versions, "its image")
        await asyncio.sleep(0.1)  # two heartbeats
        assert controller.image.brokers[1].fenced
        broker.ready = True
        await brokers.unfenced(broker)

        behind = await brokers.new(2)
        behind.applies = False
        await behind.connect(controller)
        await until(lambda: behind.versions, "its image")
        await asyncio.sleep(0.1)
        assert controller.image.brokers[2].fenced
        behind.applies = True
        await create_topic(controller, "a", (1,))  # something to apply
        await brokers.unfenced(behind)


@pytest.mark.parametrize(
    ("request_", "error", "names"),
    [
        (controller_pb2.SessionRequest(heartbeat=controller_pb2.Heartbeat()), errors.InvalidRequest, "'heartbeat'"),
        (controller_pb2.SessionRequest(), errors.InvalidRequest, "None"),
    ],
)
@asynchronous
async def test_a_stream_that_begins_wrong_gets_the_reason(
    request_: controller_pb2.SessionRequest, error: type[errors.FencepostError], names: str
) -> None:
    async with running() as controller, stubs(controller) as (stub, _):
        call = stub.Session()
        await call.write(request_)
        responses = [response async for response in call]
        assert [response.WhichOneof("kind") for response in responses] == ["error"]
        with pytest.raises(error, match=names):
            errors.raise_for(responses[0].error)
        assert not controller.image.brokers


@asynchronous
async def test_metadata_from_the_future_ends_the_session_with_a_reason() -> None:
    async with running() as controller, cluster(controller) as brokers:
        (one,) = await brokers.live(1)
        await one.write(controller_pb2.SessionRequest(heartbeat=controller_pb2.Heartbeat(applied_version=10**6)))
        await until(one.ended.is_set, "the session's end")
        assert isinstance(one.error, errors.InvalidRequest)
        assert "1000000" in str(one.error)


@asynchronous
async def test_a_second_registration_on_a_stream_ends_the_session_with_a_reason() -> None:
    async with running() as controller, cluster(controller) as brokers:
        (one,) = await brokers.live(1)
        await one.write(controller_pb2.SessionRequest(register=controller_pb2.Register(broker_id=1)))
        await until(one.ended.is_set, "the session's end")
        assert isinstance(one.error, errors.InvalidRequest)
        assert "'register'" in str(one.error)


# ---- Dead, or not ----


@asynchronous
async def test_a_killed_broker_is_replaced_at_once() -> None:
    async with running() as controller, cluster(controller) as brokers:
        one, two, _ = await brokers.live(1, 2, 3)
        topic_id = await create_topic(controller, "a", (1, 2, 3))
        loop = asyncio.get_running_loop()
        began = loop.time()
        await one.killed()
        await until(lambda: two.image.partitions[topic_id, 0].leader == 2, "a new leader, at the new leader")
        assert loop.time() - began < 2  # of a session timeout of a minute
        partition = two.image.partitions[topic_id, 0]
        assert (partition.isr, partition.leader_epoch) == ((2, 3), 1)
        assert controller.image.brokers[1].fenced


@asynchronous
async def test_a_port_taken_by_another_process_does_not_pass_for_the_broker() -> None:
    async with running() as controller, cluster(controller) as brokers:
        one, _ = await brokers.live(1, 2)
        stranger = await brokers.new(9, "a stranger")
        one.address = stranger.address
        await one.connect(controller)  # the same incarnation, now registered at the stranger's address
        await one.stream_breaks()
        await until(lambda: controller.image.brokers[1].fenced, "broker 1 found dead")


@asynchronous
async def test_a_broken_stream_of_a_living_process_costs_nothing() -> None:
    async with running() as controller, cluster(controller) as brokers:
        one, _ = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", (1, 2))
        version, epoch = controller.image.version, one.epoch
        await one.stream_breaks()
        await asyncio.sleep(0.25)  # more than one probe
        assert not controller.image.brokers[1].fenced
        await one.connect(controller)
        await until(lambda: one.images == 2, "its image")
        assert one.epoch == epoch
        assert controller.image.version == version
        assert controller.image.partitions[topic_id, 0].leader == 1


@asynchronous
async def test_silence_for_a_session_timeout_is_death_and_registering_again_brings_it_back() -> None:
    async with running(session_timeout_ms=SHORT_TIMEOUT_MS) as controller, cluster(controller) as brokers:
        one, _ = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", (1, 2))
        loop = asyncio.get_running_loop()
        began = loop.time()
        one.falls_silent()
        await until(lambda: controller.image.brokers[1].fenced, "broker 1 fenced")
        assert SHORT_TIMEOUT_MS / 1000 * 0.8 < loop.time() - began < 8
        assert controller.image.partitions[topic_id, 0].leader == 2
        await until(one.ended.is_set, "the session's end")
        assert isinstance(one.error, errors.RequestTimedOut)
        assert one.error.retriable
        epoch = controller.image.brokers[1].broker_epoch
        await one.connect(controller)
        await brokers.unfenced(one)
        assert one.epoch == epoch, "the same process: nothing of its log is in doubt"


@asynchronous
async def test_a_process_that_does_not_answer_the_probe_has_until_its_silence_decides() -> None:
    async with running(session_timeout_ms=1_500) as controller, cluster(controller) as brokers:
        paused = await brokers.new(1, paused=True)
        await paused.connect(controller)
        await brokers.unfenced(paused)
        began = asyncio.get_running_loop().time()
        await paused.stream_breaks()
        await until(lambda: controller.image.brokers[1].fenced, "broker 1 fenced")
        assert asyncio.get_running_loop().time() - began > 1.0


@asynchronous
async def test_a_broker_that_comes_back_and_does_not_apply_what_it_has_missed_is_dead() -> None:
    async with running(session_timeout_ms=SHORT_TIMEOUT_MS) as controller, cluster(controller) as brokers:
        one, _ = await brokers.live(1, 2)
        await one.stream_breaks()
        await create_topic(controller, "a", (1, 2))
        one.applies = False
        await one.connect(controller)
        await until(lambda: controller.image.brokers[1].fenced, "broker 1 fenced")


@asynchronous
async def test_a_goodbye_is_death_without_a_probe() -> None:
    async with running() as controller, cluster(controller) as brokers:
        one, _ = await brokers.live(1, 2)
        await one.goodbye()
        await until(lambda: controller.image.brokers[1].fenced, "broker 1 fenced")
        await until(one.ended.is_set, "the stream's end")
        assert one.error is None


def without_its_start(image: MetadataImage) -> MetadataImage:
    """Each start of the controller is one more version, and begins a lineage."""
    return replace(image, version=0, lineage=Lineage())


@asynchronous
async def test_after_its_own_restart_the_controller_gives_everybody_a_session_timeout(tmp_path: Path) -> None:
    path = str(tmp_path / "metadata.sqlite")
    async with running(SqliteStore(path)) as controller, cluster(controller) as brokers:
        one, two = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", (1, 2))
        before = controller.image
        await controller.stop(clean=True)
        await until(lambda: one.ended.is_set() and two.ended.is_set(), "the sessions' end")
        assert isinstance(one.error, errors.NotController)

        async with running(SqliteStore(path), session_timeout_ms=SHORT_TIMEOUT_MS) as second:
            assert without_its_start(second.image) == without_its_start(before)
            began = asyncio.get_running_loop().time()
            await two.connect(second)
            await until(lambda: second.image.brokers[1].fenced, "broker 1 fenced")
            assert asyncio.get_running_loop().time() - began > SHORT_TIMEOUT_MS / 1000 * 0.8
            assert second.image.partitions[topic_id, 0].leader == 2
            assert not second.image.brokers[2].fenced


@asynchronous
async def test_a_restarted_controller_finds_the_cluster_as_it_was_and_moves_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "metadata.sqlite")
    async with running(SqliteStore(path)) as controller, cluster(controller) as brokers:
        live = await brokers.live(1, 2, 3)
        await create_topic(controller, "a", (1, 2, 3), (2, 3, 1))
        before = controller.image
        await controller.stop(clean=True)
        async with running(SqliteStore(path)) as second:
            await asyncio.gather(*(broker.connect(second) for broker in live))
            for broker in live:
                await until(lambda b=broker: b.images == 2, "its image")  # type: ignore[misc]
            await asyncio.sleep(0.1)
            assert second.image.version == before.version + 1
            assert without_its_start(second.image) == without_its_start(before)


@pytest.mark.parametrize("died_with_power", [1, 2])
@asynchronous
async def test_what_has_waited_for_the_opening_is_decided_in_an_order_that_leaves_someone_with_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died_with_power: int
) -> None:
    """Of two in sync, one is dead and whole, the other is back and has lost its tail. The controller was away. The metadata
    says that both are live: to decide the death first would leave the set to the one that has lost its tail."""
    path, whole = str(tmp_path / "metadata.sqlite"), 3 - died_with_power

    async def probe(wire: Wire, address: str, incarnation: str) -> ProbeVerdict:
        await asyncio.sleep(0.3)  # a registration takes longer than a death
        return await real_probe(wire, address, incarnation)

    monkeypatch.setattr(sessions_module, "probe", probe)
    async with running(SqliteStore(path)) as controller, cluster(controller) as brokers:
        lives = dict(zip((1, 2), await brokers.live(1, 2), strict=True))
        topic_id = await create_topic(controller, "a", (1, 2))
        await controller.stop(clean=True)
        for life in lives.values():
            await life.killed()
        async with running(SqliteStore(path), session_timeout_ms=SHORT_TIMEOUT_MS) as second:
            back = await brokers.new(died_with_power, "life 2")
            back.cluster_id, back.may_have_lost_tail = second.image.cluster_id, True
            await back.connect(second)
            await until(lambda: all(b.fenced or b.id != whole for b in second.image.brokers.values()), "the death")
            partition = second.image.partitions[topic_id, 0]
            assert (partition.leader, partition.isr, partition.last_known_isr) == (NO_LEADER, (whole,), ())
            again = await brokers.new(whole, "life 2")
            again.cluster_id = second.image.cluster_id
            await again.connect(second)
            await until(lambda: second.image.partitions[topic_id, 0].leader == whole, "it leads again")


@asynchronous
async def test_a_broker_that_is_back_does_not_leave_the_in_sync_set_to_one_that_did_not_come(tmp_path: Path) -> None:
    path = str(tmp_path / "metadata.sqlite")
    async with running(SqliteStore(path)) as controller, cluster(controller) as brokers:
        lives = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", (1, 2))
        await controller.stop(clean=True)
        for life in lives:
            await life.killed()
        async with running(SqliteStore(path), session_timeout_ms=3_000) as second:
            back = await brokers.new(1, "life 2")
            back.cluster_id = second.image.cluster_id
            await back.connect(second)
            await until(lambda: second.image.partitions[topic_id, 0].leader == 1, "it leads")
            assert second.image.brokers[2].fenced


@asynchronous
async def test_no_one_waits_long_for_a_registration_that_tells_of_a_loss_and_cannot_be_decided(tmp_path: Path) -> None:
    """The process before it holds the id, and does not answer."""
    path = str(tmp_path / "metadata.sqlite")
    async with running(SqliteStore(path)) as controller, cluster(controller) as brokers:
        paused, (two,) = await brokers.new(1, paused=True), await brokers.live(2)
        await paused.connect(controller)
        await brokers.unfenced(paused)
        await controller.stop(clean=True)
        async with running(SqliteStore(path), session_timeout_ms=9_000) as second:
            back = await brokers.new(1, "life 2")
            back.cluster_id, back.may_have_lost_tail = second.image.cluster_id, True
            registering = asyncio.create_task(back.connect(second))
            began = asyncio.get_running_loop().time()
            await two.connect(second)
            assert asyncio.get_running_loop().time() - began < LOSSES_WITHIN_S + 3
            assert not registering.done()
            registering.cancel()


# ---- One id, several processes ----


@asynchronous
async def test_an_id_in_use_is_refused_and_its_holder_is_not_disturbed() -> None:
    async with running() as controller, cluster(controller) as brokers:
        (one,) = await brokers.live(1)
        version = controller.image.version
        second = await (await brokers.new(1, "life 2")).connect(controller)
        assert isinstance(second.error, errors.DuplicateBrokerRegistration)
        assert one.address in str(second.error)
        assert controller.image.version == version
        assert not one.ended.is_set()


@asynchronous
async def test_what_is_refused_for_certain_is_said_before_anybody_asks_whether_the_id_is_in_use() -> None:
    async with running() as controller, cluster(controller) as brokers:
        (one,) = await brokers.live(1)
        stranger = await brokers.new(1, "of another cluster")
        stranger.cluster_id = "another"
        await stranger.connect(controller)
        assert isinstance(stranger.error, errors.InconsistentClusterId)
        assert "'another'" in str(stranger.error)
        nobody = await brokers.new(1, "life 2")
        nobody.address = "nowhere"
        await nobody.connect(controller)
        assert isinstance(nobody.error, errors.InvalidRequest)
        assert not one.ended.is_set()


@asynchronous
async def test_a_restart_faster_than_the_old_stream_breaks_is_accepted_after_a_probe() -> None:
    async with running() as controller, cluster(controller) as brokers:
        one, two = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", (1, 2))
        await one.stop_listening()  # dead, and its stream still looks open
        again = await (await brokers.new(1, "life 2")).connect(controller)
        assert again.epoch > one.epoch
        await until(one.ended.is_set, "the old stream's end")
        await until(lambda: two.image.partitions[topic_id, 0].leader == 2, "a new leader")
        await brokers.unfenced(again)


@asynchronous
async def test_a_new_life_waits_for_the_verdict_on_one_that_may_only_be_paused() -> None:
    async with running(session_timeout_ms=SHORT_TIMEOUT_MS) as controller, cluster(controller) as brokers:
        paused = await brokers.new(1, paused=True)
        await paused.connect(controller)
        await brokers.unfenced(paused)
        paused.falls_silent()
        again = await (await brokers.new(1, "life 2")).connect(controller)
        assert again.error is None
        assert again.epoch > paused.epoch
        await brokers.unfenced(again)


@asynchronous
async def test_a_new_life_is_not_refused_where_the_verdict_on_the_old_one_waits_for_the_store() -> None:
    """A broker's process ends with that refusal."""
    store = SlowStore()
    async with running(store, session_timeout_ms=SHORT_TIMEOUT_MS) as controller, cluster(controller) as brokers:
        paused = await brokers.new(1, paused=True)
        await paused.connect(controller)
        await brokers.unfenced(paused)
        store.hold()
        paused.falls_silent()
        again = await (await brokers.new(1, "life 2")).connect(controller)
        store.let_go()
        assert isinstance(again.error, errors.RequestTimedOut)
        await until(lambda: controller.image.brokers[1].fenced, "the verdict")
        await again.connect(controller)
        assert again.error is None


@asynchronous
async def test_of_two_new_lives_that_wait_for_the_same_verdict_the_living_one_gets_the_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Restarted twice in a row: the registration of the life between is still under way, and its process is dead."""

    found_dead = asyncio.Event()
    asked: list[str] = []

    async def probe(wire: Wire, address: str, incarnation: str) -> ProbeVerdict:
        asked.append(incarnation)
        if incarnation != "life 1":
            return await real_probe(wire, address, incarnation)
        await found_dead.wait()
        return ProbeVerdict.DEAD

    monkeypatch.setattr(sessions_module, "probe", probe)
    async with running() as controller, cluster(controller) as brokers:
        await brokers.live(1)
        between, last = await brokers.new(1, "life 2"), await brokers.new(1, "life 3")
        registering = asyncio.create_task(between.connect(controller))
        await until(lambda: asked == ["life 1"], "the probe for life 2")
        waiting = asyncio.create_task(last.connect(controller))
        await until(lambda: asked == ["life 1"] * 2, "the probe for life 3")
        await between.stop_listening()
        found_dead.set()
        await waiting
        assert last.error is None
        await brokers.unfenced(last)
        assert asked[2:] == ["life 2"]
        assert controller.image.brokers[1].incarnation == "life 3"
        await registering


@asynchronous
async def test_requests_and_heartbeats_of_the_old_life_are_refused() -> None:
    async with running() as controller, cluster(controller) as brokers, stubs(controller) as (stub, _):
        one, _ = await brokers.live(1, 2)
        old_epoch = one.epoch
        await one.killed()
        await until(lambda: controller.image.brokers[1].fenced, "broker 1 fenced")
        again = await (await brokers.new(1, "life 2")).connect(controller)
        await brokers.unfenced(again)
        request = controller_pb2.AllocateProducerIdsRequest(broker_id=1, broker_epoch=old_epoch)
        answer = await stub.AllocateProducerIds(request)
        assert answer.error.code == errors.ErrorCode.STALE_BROKER_EPOCH
        request.broker_epoch = again.epoch
        answer = await stub.AllocateProducerIds(request)
        assert (answer.error.code, answer.first_producer_id, answer.count) == (0, 0, 1_000)


@asynchronous
async def test_a_reboot_without_a_clean_end_leaves_the_partition_to_the_operator() -> None:
    async with running() as controller, cluster(controller) as brokers, stubs(controller) as (_, admin):
        (one,) = await brokers.live(1)
        topic_id = await create_topic(controller, "a", (1,))
        await one.killed()
        await until(lambda: controller.image.brokers[1].fenced, "broker 1 fenced")
        again = await brokers.new(1, "life 2")
        again.cluster_id, again.may_have_lost_tail = controller.image.cluster_id, True
        await again.connect(controller)
        await brokers.unfenced(again)
        partition = controller.image.partitions[topic_id, 0]
        assert (partition.leader, partition.isr, partition.last_known_isr) == (NO_LEADER, (), (1,))
        request = controller_pb2.ElectLeaderRequest(topic_name="a", partition=0, unclean=True, leader=1)
        assert (await admin.ElectLeader(request)).error.code == 0
        assert controller.image.partitions[topic_id, 0].leader == 1


# ---- What heartbeats ask for ----


@asynchronous
async def test_a_controlled_shutdown_moves_leaderships_before_it_is_allowed() -> None:
    async with running() as controller, cluster(controller) as brokers:
        one, _ = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", (1, 2))
        one.wants_shutdown = True
        one.says()
        await until(one.shutdown_allowed.is_set, "the shutdown allowed")
        assert one.image.partitions[topic_id, 0].leader == 2, "it knows before it may go"
        version = controller.image.version
        await asyncio.sleep(0.12)  # more heartbeats want the same
        assert controller.image.version == version
        await one.goodbye()
        await until(lambda: controller.image.brokers[1].fenced, "broker 1 fenced")


@asynchronous
async def test_a_fenced_broker_may_shut_down_at_once() -> None:
    async with running() as controller, cluster(controller) as brokers:
        broker = await brokers.new(1)
        broker.ready = False
        broker.wants_shutdown = True
        await broker.connect(controller)
        await until(broker.shutdown_allowed.is_set, "the shutdown allowed")
        assert controller.image.brokers[1].fenced


def proposed(leader: FakeBroker, *proposals: controller_pb2.IsrProposal) -> controller_pb2.AlterPartitionRequest:
    return controller_pb2.AlterPartitionRequest(
        broker_id=leader.broker_id, broker_epoch=leader.epoch, proposals=proposals
    )


@asynchronous
async def test_the_proposals_of_a_broker_are_decided_each_on_its_own_and_become_one_version() -> None:
    async with running() as controller, cluster(controller) as brokers, stubs(controller) as (stub, _):
        one, two = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", *[(1, 2)] * 50)
        version = controller.image.version
        alone = [controller_pb2.IsrMember(broker_id=1, broker_epoch=one.epoch)]
        proposals = [
            controller_pb2.IsrProposal(topic_id=topic_id, partition=n, partition_epoch=int(n == 7), new_isr=alone)
            for n in range(50)
        ]
        answer = await stub.AlterPartition(proposed(one, *proposals))
        assert answer.error.code == 0
        codes = {n: result.code for n, result in enumerate(answer.results) if result.code}
        assert codes == {7: errors.ErrorCode.INVALID_UPDATE_VERSION}
        assert answer.version == controller.image.version == version + 1
        assert {p.index for p in controller.image.partitions.values() if p.isr == (1,)} == {*range(50)} - {7}
        await until(lambda: two.image.version == controller.image.version, "broker 2 up to date")
        assert two.image.partitions == controller.image.partitions
        assert two.versions[-1] == version + 1

        too_many = proposed(one, *[proposals[0]] * (MAX_PROPOSALS + 1))
        assert (await stub.AlterPartition(too_many)).error.code == errors.ErrorCode.INVALID_REQUEST
        stale = controller_pb2.AlterPartitionRequest(broker_id=1, broker_epoch=1, proposals=proposals)
        assert (await stub.AlterPartition(stale)).error.code == errors.ErrorCode.STALE_BROKER_EPOCH


@asynchronous
async def test_a_failed_replica_loses_its_leadership_and_stays_out_until_the_broker_restarts() -> None:
    async with running() as controller, cluster(controller) as brokers, stubs(controller) as (stub, _):
        one, two = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", (1, 2), (1, 2))
        one.failed = [(topic_id, 0), ("deleted long ago", 3)]
        one.says()
        await until(lambda: controller.image.partitions[topic_id, 0].leader == 2, "a new leader")
        assert controller.image.partitions[topic_id, 1].leader == 1
        version = controller.image.version
        await asyncio.sleep(0.12)  # more heartbeats say the same
        assert controller.image.version == version
        one.failed = []
        partition = controller.image.partitions[topic_id, 0]
        proposal = controller_pb2.IsrProposal(
            topic_id=topic_id,
            partition=0,
            leader_epoch=partition.leader_epoch,
            partition_epoch=partition.partition_epoch,
            new_isr=[controller_pb2.IsrMember(broker_id=b.broker_id, broker_epoch=b.epoch) for b in (one, two)],
        )
        answer = await stub.AlterPartition(proposed(two, proposal))
        assert [result.code for result in answer.results] == [errors.ErrorCode.INELIGIBLE_REPLICA]
        await one.killed()
        await until(lambda: controller.image.brokers[1].fenced, "broker 1 fenced")
        again = await (await brokers.new(1, "life 2")).connect(controller)
        await brokers.unfenced(again)
        proposal.new_isr[0].broker_epoch = again.epoch
        answer = await stub.AlterPartition(proposed(two, proposal))
        assert (answer.error.code, [result.code for result in answer.results]) == (0, [0])
        assert answer.version == controller.image.version
        assert controller.image.partitions[topic_id, 0].isr == (1, 2)


@asynchronous
async def test_preferred_leaders_come_back_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "SETTLE_S", 0.3)

    async with (
        running(preferred_leader_interval_ms=20) as controller,
        cluster(controller) as brokers,
        stubs(controller) as (stub, _),
    ):
        one, two = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", (1, 2))
        await one.killed()
        await until(lambda: controller.image.partitions[topic_id, 0].leader == 2, "a new leader")
        again = await (await brokers.new(1, "life 2")).connect(controller)
        await brokers.unfenced(again)
        unfenced_at = asyncio.get_running_loop().time()
        partition = controller.image.partitions[topic_id, 0]
        members = [controller_pb2.IsrMember(broker_id=b.broker_id, broker_epoch=b.epoch) for b in (again, two)]
        proposal = controller_pb2.IsrProposal(
            topic_id=topic_id,
            leader_epoch=partition.leader_epoch,
            partition_epoch=partition.partition_epoch,
            new_isr=members,
        )
        await stub.AlterPartition(proposed(two, proposal))
        await until(lambda: controller.image.partitions[topic_id, 0].leader == 1, "the preferred leader")
        assert asyncio.get_running_loop().time() - unfenced_at > 0.25


@asynchronous
async def test_a_leadership_is_not_given_back_to_a_broker_without_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may live, and does not hear of it."""

    async with (
        running(preferred_leader_interval_ms=20) as controller,
        cluster(controller) as brokers,
        stubs(controller) as (_, admin),
    ):
        one, two = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", (2, 1))
        await until(lambda: two.image.version == controller.image.version, "broker 2 up to date")
        await one.stream_breaks()
        reorder = controller_pb2.PartitionReassignment(partition=0, replicas=[1, 2])
        await admin.AlterPartitionReassignments(
            controller_pb2.AlterPartitionReassignmentsRequest(topic_name="a", reassignments=[reorder])
        )
        monkeypatch.setattr(sessions_module, "SETTLE_S", 0.0)
        await asyncio.sleep(0.2)  # ten rounds
        assert controller.image.partitions[topic_id, 0].leader == 2
        await one.connect(controller)
        await until(lambda: controller.image.partitions[topic_id, 0].leader == 1, "the preferred leader")


# ---- When the store refuses ----


class FailingStore:
    """Refuses commits while `fails`."""

    def __init__(self) -> None:
        self.inner = in_memory()
        self.fails = False
        self.refused = 0

    def load(self) -> tuple[int, Sequence[Entity]]:
        return self.inner.load()

    def commit(self, expected_version: int, version: int, changes: Changes) -> None:
        if self.fails:
            self.refused += 1
            raise CommitFailed("disk full")
        self.inner.commit(expected_version, version, changes)

    def close(self) -> None:
        self.inner.close()


@asynchronous
async def test_a_death_that_could_not_be_stored_is_not_forgotten() -> None:
    store = FailingStore()
    async with running(store) as controller, cluster(controller) as brokers:
        one, two = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", (1, 2))
        store.fails = True
        await one.killed()
        await until(lambda: store.refused, "a commit refused")
        assert not controller.image.brokers[1].fenced
        store.fails = False
        await until(lambda: two.image.partitions[topic_id, 0].leader == 2, "a new leader")


@asynchronous
async def test_while_the_store_refuses_the_heartbeats_ask_again() -> None:
    store = FailingStore()
    async with running(store) as controller, cluster(controller) as brokers:
        (one,) = await brokers.live(1)
        topic_id = await create_topic(controller, "a", (1,))
        store.fails = True
        one.failed = [(topic_id, 0)]
        await until(lambda: store.refused, "a commit refused")
        store.fails = False
        await until(lambda: controller.image.partitions[topic_id, 0].leader == NO_LEADER, "the failed leader gone")
        assert not one.ended.is_set()


class SlowStore(FailingStore):
    """A commit returns when it is `let_go`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = 0

    def commit(self, expected_version: int, version: int, changes: Changes) -> None:
        self.waiting += 1
        self.gate.wait(DEADLINE_S)
        self.waiting -= 1
        super().commit(expected_version, version, changes)

    def hold(self) -> None:
        self.gate.clear()

    def let_go(self) -> None:
        self.gate.set()


@asynchronous
async def test_a_broker_that_dies_while_it_is_being_unfenced_is_found_dead() -> None:
    store = SlowStore()
    async with running(store) as controller, cluster(controller) as brokers:
        one = await brokers.new(1)
        one.ready = False
        await one.connect(controller)
        store.hold()
        one.ready = True
        one.says()
        await until(lambda: store.waiting, "the commit that unfences it")
        version = controller.image.version
        await one.killed()
        await until(lambda: not controller.reign().sessions.applied(), "the session's end")
        store.let_go()
        await until(lambda: controller.image.version > version, "the commit")
        await until(lambda: controller.image.brokers[1].fenced, "broker 1 fenced again")


@asynchronous
async def test_a_failed_replica_is_not_forgotten_where_the_session_breaks_before_it_is_acted_on() -> None:
    store = SlowStore()
    async with running(store) as controller, cluster(controller) as brokers:
        one, _ = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", (1, 2))
        store.hold()
        other = asyncio.create_task(create_topic(controller, "b", (2,)))
        await until(lambda: store.waiting, "a commit under way, behind which all others wait")
        one.failed = [(topic_id, 0)]
        one.says()
        await until(lambda: controller.reign().sessions._failed, "the failed replica known")
        await one.stream_breaks()
        await until(lambda: 1 not in controller.reign().sessions.applied(), "the session's end")
        store.let_go()
        await other
        assert controller.image.partitions[topic_id, 0].leader == 1, "no one has acted on it"
        await one.connect(controller)
        await until(lambda: controller.image.partitions[topic_id, 0].leader == 2, "a leader whose disk works")


@asynchronous
async def test_a_replica_that_recovers_while_the_controller_is_away_leads_under_the_next_one(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "store"))
    async with AsyncExitStack() as stack:
        async with running(store) as controller:
            # Its brokers outlive it: a probe that is under way when it stops finds them.
            brokers = await stack.enter_async_context(cluster(controller))
            one = await brokers.new(1)
            stack.push_async_callback(one.killed)
            await one.connect(controller)
            await brokers.unfenced(one)
            topic_id = await create_topic(controller, "a", (1,))
            one.failed = [(topic_id, 0)]
            one.says()
            await until(lambda: controller.image.partitions[topic_id, 0].leader == NO_LEADER, "the failed leader gone")
            await one.stream_breaks()
        one.failed = []
        async with running(SqliteStore(str(tmp_path / "store"))) as successor:
            assert not successor.image.brokers[1].fenced
            await one.connect(successor)
            await until(
                lambda: successor.image.partitions[topic_id, 0].leader == 1, "the leader whose disk works again"
            )
            await one.stream_breaks()


# ---- The fence ----


def init(name: str, timeout_ms: int, producer_id: int = -1, epoch: int = -1) -> broker_pb2.InitProducerIdRequest:
    return broker_pb2.InitProducerIdRequest(
        name=name, producer_id=producer_id, producer_epoch=epoch, timeout_ms=timeout_ms
    )


@asynchronous
async def test_a_named_producer_is_answered_once_every_live_broker_has_applied_its_epoch() -> None:
    async with running() as controller, cluster(controller) as brokers, stubs(controller) as (stub, _):
        _, two = await brokers.live(1, 2)
        await create_topic(controller, "a", (1, 2))
        await until(lambda: two.image.version == controller.image.version, "broker 2 up to date")
        two.applies = False
        asked = asyncio.ensure_future(stub.InitProducerId(init("loader", 5_000)))
        await until(lambda: "loader" in controller.image.producers, "the epoch committed")
        await asyncio.sleep(0.12)
        assert not asked.done()
        two.applies = True
        await create_topic(controller, "b", (1, 2))  # something more to apply
        answer = await asked
        assert (answer.error.code, answer.producer_id, answer.producer_epoch) == (0, FIRST_NAMED_ID, 0)
        assert two.image.fences == {FIRST_NAMED_ID: 0}
        again = await stub.InitProducerId(init("loader", 5_000))
        assert (again.error.code, again.producer_id, again.producer_epoch) == (0, FIRST_NAMED_ID, 1)


@asynchronous
async def test_a_broker_that_talks_and_does_not_apply_is_declared_dead_and_the_fence_stands_without_it() -> None:
    async with (
        running(session_timeout_ms=SHORT_TIMEOUT_MS) as controller,
        cluster(controller) as brokers,
        stubs(controller) as (stub, _),
    ):
        _, two = await brokers.live(1, 2)
        await create_topic(controller, "a", (1, 2))
        await until(lambda: two.image.version == controller.image.version, "broker 2 up to date")
        two.applies = False
        answer = await stub.InitProducerId(init("loader", 5_000))
        assert answer.error.code == 0
        assert controller.image.brokers[2].fenced
        await until(two.ended.is_set, "the session's end")
        assert "has not applied" in str(two.error)


@asynchronous
async def test_a_partition_without_a_leader_holds_no_named_producer_back() -> None:
    async with running() as controller, cluster(controller) as brokers, stubs(controller) as (stub, _):
        _, two = await brokers.live(1, 2)
        await create_topic(controller, "a", (1,), (2,))
        await two.killed()
        await until(lambda: controller.image.brokers[2].fenced, "broker 2 fenced")
        answer = await stub.InitProducerId(init("loader", 5_000))
        assert (answer.error.code, answer.producer_epoch) == (0, 0)
        assert controller.image.partitions_of(next(iter(controller.image.topics)))[1].leader == NO_LEADER


@asynchronous
async def test_the_next_leader_of_an_offline_partition_has_the_fence_before_the_leadership() -> None:
    async with running() as controller, cluster(controller) as brokers, stubs(controller) as (stub, _):
        _, two = await brokers.live(1, 2)
        topic_id = await create_topic(controller, "a", (1,), (2,))
        await two.killed()
        await until(lambda: controller.image.brokers[2].fenced, "broker 2 fenced")
        await stub.InitProducerId(init("loader", 5_000))
        fenced_at = controller.image.version
        again = await brokers.new(2, "life 2")
        again.cluster_id = controller.image.cluster_id
        await again.connect(controller)
        await until(
            lambda: again.image.version > 0 and again.image.partitions[topic_id, 1].leader == 2, "it leads again"
        )
        assert again.versions[0] >= fenced_at
        assert again.image.fences == {FIRST_NAMED_ID: 0}


@asynchronous
async def test_a_name_is_kept_listed_removed_and_expires() -> None:
    async with (
        running(producer_name_expiration_ms=1_000) as controller,
        cluster(controller) as brokers,
        stubs(controller) as (stub, admin),
    ):
        await brokers.live(1)
        for name in "abc":
            answer = await stub.InitProducerId(init(name, 5_000))
            assert (answer.error.code, answer.name_expiration_ms) == (0, 1_000)
        page = await admin.ListProducerNames(controller_pb2.ListProducerNamesRequest(max_names=2))
        assert ([name.name for name in page.names], page.more) == (["a", "b"], True)
        page = await admin.ListProducerNames(controller_pb2.ListProducerNamesRequest(after="b", max_names=2))
        assert ([name.name for name in page.names], page.more) == (["c"], False)
        removed = await admin.RemoveProducerName(controller_pb2.RemoveProducerNameRequest(name="b"))
        assert (removed.error.code, removed.version) == (0, controller.image.version)
        again = await admin.RemoveProducerName(controller_pb2.RemoveProducerNameRequest(name="b"))
        assert again.error.code == errors.ErrorCode.INVALID_REQUEST
        keep = init("c", 5_000, FIRST_NAMED_ID + 2, 0)
        keep.keep_alive = True
        while "a" in controller.image.producers:
            kept = await stub.InitProducerId(keep)
            assert (kept.error.code, kept.producer_id, kept.producer_epoch) == (0, FIRST_NAMED_ID + 2, 0)
            await asyncio.sleep(0.05)
        assert list(controller.image.producers) == ["c"]
        page = await admin.ListProducerNames(controller_pb2.ListProducerNamesRequest())
        assert [(name.name, name.expired) for name in page.names] == [("a", True), ("c", False)]


@asynchronous
async def test_who_is_overtaken_while_waiting_is_fenced() -> None:
    async with running() as controller, cluster(controller) as brokers, stubs(controller) as (stub, _):
        (one,) = await brokers.live(1)
        await create_topic(controller, "a", (1,))
        await until(lambda: one.image.version == controller.image.version, "broker 1 up to date")
        one.applies = False
        first = asyncio.ensure_future(stub.InitProducerId(init("loader", 5_000)))
        await until(lambda: "loader" in controller.image.producers, "the first epoch")
        second = asyncio.ensure_future(stub.InitProducerId(init("loader", 5_000)))
        await until(lambda: controller.image.producers["loader"].epoch == 1, "the second epoch")
        one.applies = True
        await create_topic(controller, "b", (1,))
        assert (await first).error.code == errors.ErrorCode.PRODUCER_FENCED
        assert (await second).producer_epoch == 1


@asynchronous
async def test_the_controllers_end_answers_everyone_who_waits() -> None:
    async with running() as controller, cluster(controller) as brokers, stubs(controller) as (stub, _):
        (one,) = await brokers.live(1)
        await create_topic(controller, "a", (1,))
        await until(lambda: one.image.version == controller.image.version, "broker 1 up to date")
        one.applies = False
        waiting = asyncio.ensure_future(stub.InitProducerId(init("loader", 5_000)))
        await until(lambda: "loader" in controller.image.producers, "the epoch")
        await controller.stop(clean=True)
        assert (await waiting).error.code == errors.ErrorCode.NOT_CONTROLLER


@asynchronous
async def test_a_controller_whose_end_takes_long_declares_no_one_dead_for_the_sessions_that_it_has_ended() -> None:
    """Chaos: it stopped while a broker was cut off from it, and each tick of its watch told of another failure to fence."""

    async with running(session_timeout_ms=SHORT_TIMEOUT_MS) as controller, cluster(controller) as brokers:
        (one,) = await brokers.live(1)
        controller.reign().sessions.end_all(errors.NotController("the controller is stopping"))
        await until(one.ended.is_set, "the session's end")
        enough = asyncio.get_running_loop().time() + 3 * SHORT_TIMEOUT_MS / 1000
        await until(lambda: asyncio.get_running_loop().time() > enough, "three session timeouts")
        assert not controller.image.brokers[1].fenced


@asynchronous
async def test_a_caller_who_begins_to_wait_for_a_fence_after_the_controllers_end_is_answered() -> None:
    """Its epoch was committed just before `stop`, and its handler goes on just after it."""

    fences = Fences(MetadataImage, dict)
    fences.close(errors.NotController("the controller is stopping"))
    with pytest.raises(errors.NotController, match="stopping"):
        await fences.wait(1, timeout_s=5.0)


@asynchronous
async def test_many_brokers_come_and_go_at_once() -> None:
    async with running() as controller, cluster(controller) as brokers:
        live: list[FakeBroker] = await brokers.live(*range(1, 7))
        topic_id = await create_topic(controller, "a", *[tuple((n + k) % 6 + 1 for k in range(3)) for n in range(6)])
        await asyncio.gather(live[0].killed(), live[1].killed(), live[2].killed())
        await until(lambda: sum(b.fenced for b in controller.image.brokers.values()) == 3, "three fenced")
        for broker in live[3:]:
            await until(lambda b=broker: b.image == controller.image, "the broker has all metadata")  # type: ignore[misc]
            assert broker.versions == list(range(broker.versions[0], controller.image.version + 1))
        for partition in controller.image.partitions_of(topic_id):
            live_replicas = [b for b in partition.replicas if b > 3]
            assert partition.leader == (live_replicas[0] if live_replicas else NO_LEADER)
