"""A broker's session with its controller, against a scripted controller over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fencepost_node.controller_link import ControllerLink
from fencepost_node.controller_session import ControllerSession, SessionBroken
from fencepost_node.folders.data_folder import ORIGIN_MARK, DataFolder
from fencepost_node.folders.known_metadata import KnownMetadata
from fencepost_node.log.disk import RealDisk
from fencepost_node.log.origin_mark import TOLERANCE_NS
from fencepost_node.metadata_feed import MetadataFeed
from fencepost_proto.protocol.errors import (
    DuplicateBrokerRegistration,
    InconsistentClusterId,
    InvariantBroken,
    NotController,
    StaleBrokerEpoch,
    StorageError,
)
from fencepost_proto.protocol.features import NEWEST
from fencepost_proto.protocol.metadata import (
    BrokerRegistration,
    MetadataImage,
    NamedProducer,
    Partition,
    PartitionKey,
    Topic,
)
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.turns import Turns
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.fake_controller import CLUSTER_ID, FakeController, fake_controller

BROKER_ID = 7
ADDRESS = "127.0.0.1:7777"


class RecordingReplicas:
    """What the session applied, in order."""

    def __init__(self) -> None:
        self.applied: list[tuple[MetadataImage, int]] = []
        self.failed_replicas: Sequence[PartitionKey] = []
        self.damaged: Mapping[PartitionKey, str] = {}
        self.apply_error: Exception | None = None
        self.goes_on = False  # applying does not end, and makes steps
        self.changed: list[Collection[PartitionKey] | None] = []

    async def apply_in_turns(
        self, image: MetadataImage, broker_epoch: int, changed: Collection[PartitionKey] | None, turns: Turns
    ) -> None:
        self.changed.append(changed)
        while self.goes_on:
            await turns.step()
            await asyncio.sleep(0.001)
        if self.apply_error is not None:
            raise self.apply_error
        self.applied.append((image, broker_epoch))

    @property
    def versions(self) -> list[int]:
        return [image.version for image, _ in self.applied]


class Node:
    """The session and what stands around it."""

    def __init__(self, data_dir: Path, controller: str) -> None:
        host = Host(random=random.Random(1))
        self.replicas = RecordingReplicas()
        self.feed = MetadataFeed()
        self.folder = DataFolder(RealDisk(), str(data_dir), BROKER_ID)
        self.known = KnownMetadata(RealDisk(), str(data_dir))
        self.link = ControllerLink(host, controller, BROKER_ID, self.known.learn)
        self.session = ControllerSession(
            host=host,
            broker_id=BROKER_ID,
            address=ADDRESS,
            link=self.link,
            folder=self.folder,
            known=self.known,
            replicas=self.replicas,
            feed=self.feed,
        )


@asynccontextmanager
async def node_of(controller: str, data_dir: Path) -> AsyncIterator[tuple[Node, asyncio.Task[None]]]:
    node = Node(data_dir, controller)
    node.folder.open()
    node.known.open()
    running = asyncio.create_task(node.session.run())
    try:
        yield node, running
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await running
        await node.link.close()


def me(version: int) -> BrokerRegistration:
    return BrokerRegistration(BROKER_ID, ADDRESS, version, "incarnation", fenced=False)


@asynchronous
async def test_it_registers_with_what_the_data_folder_knows_and_records_the_cluster_before_anything_else(
    tmp_path: Path,
) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (node, _):
        stream = await controller.session(0)
        assert stream.registration.broker_id == BROKER_ID
        assert stream.registration.cluster_id == ""
        assert stream.registration.address == ADDRESS
        assert stream.registration.incarnation == node.session.incarnation
        assert stream.registration.may_have_lost_tail  # an empty folder holds nothing of what it once promised
        assert (stream.registration.folder_epoch, stream.registration.folder_is_copy) == (0, False)
        assert stream.registration.feature_level == NEWEST
        await stream.registered(5)
        await stream.image(5, me(5))
        await stream.acknowledged(5)
        assert node.folder.cluster_id == CLUSTER_ID
        assert b"cluster.id=cluster-of-the-test\n" in (tmp_path / "meta.properties").read_bytes()
        assert node.link.broker_epoch == 5


@asynchronous
async def test_the_broker_epoch_is_in_the_data_folder_before_the_first_heartbeat_and_reported_with_the_next_registration(
    tmp_path: Path,
) -> None:
    async with fake_controller() as controller:
        for epoch_before, epoch, copy in ((0, 5, False), (5, 9, False), (9, 12, True)):
            if copy:
                content = (tmp_path / ORIGIN_MARK).read_bytes()
                (tmp_path / ORIGIN_MARK).unlink()
                await asyncio.sleep(2 * TOLERANCE_NS / 1e9)
                (tmp_path / ORIGIN_MARK).write_bytes(content)
            node = Node(tmp_path, controller.address)
            node.folder.open()
            running = asyncio.create_task(node.session.run())
            stream = await controller.session(len(controller.sessions))
            told = stream.registration
            assert (told.folder_epoch, told.folder_is_copy, told.may_have_lost_tail) == (
                epoch_before, copy, copy or not epoch_before
            )  # fmt: skip
            await stream.registered(epoch)
            await until(lambda stream=stream: stream.heartbeats, "a heartbeat")  # type: ignore[misc]
            assert f"broker.epoch={epoch}\n" in (tmp_path / "meta.properties").read_text()
            running.cancel()
            await asyncio.wait([running])
            await node.link.close()
            node.folder.close()


@asynchronous
async def test_a_registration_that_a_full_disk_does_not_take_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is done under an epoch that is not recorded: no heartbeat, no metadata."""

    def refuse(self: RealDisk, path: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left", path)

    async with fake_controller() as controller:
        with monkeypatch.context() as full:
            full.setattr(RealDisk, "write_atomically", refuse)
            node = Node(tmp_path, controller.address)
            node.folder.open()
            running = asyncio.create_task(node.session.run())
            first = await controller.session(0)
            await first.registered(5)
            second = await controller.session(1)
            assert first.heartbeats == []
        await second.registered(5)
        await until(lambda: second.heartbeats, "a heartbeat")
        assert second.registration.incarnation == first.registration.incarnation
        assert node.folder.broker_epoch == 5
        running.cancel()
        await asyncio.wait([running])
        await node.link.close()
        node.folder.close()


@asynchronous
async def test_damaged_replicas_are_reported_with_the_registration(tmp_path: Path) -> None:
    async with fake_controller() as controller:
        node = Node(tmp_path, controller.address)
        node.folder.open()
        node.known.open()
        node.replicas.damaged = {("b", 2): "x", ("a", 1): "y"}
        running = asyncio.create_task(node.session.run())
        stream = await controller.session(0)
        told = [(ref.topic_id, ref.partition) for ref in stream.registration.damaged_replicas]
        assert told == [("a", 1), ("b", 2)]
        running.cancel()
        await asyncio.wait([running])
        await node.link.close()


@asynchronous
async def test_a_long_change_is_acknowledged_at_its_end_and_heartbeats_tell_of_progress_meanwhile(
    tmp_path: Path,
) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (node, _):
        stream = await controller.session(0)
        await stream.registered(5)
        await stream.image(5, me(5))
        before = (await stream.acknowledged(5)).progress
        node.replicas.goes_on = True
        await stream.metadata(6, Topic("t", "orders"), Partition("t", 3, (BROKER_ID,), (BROKER_ID,), BROKER_ID, 0, 0))
        beats = await until(
            lambda: [beat for beat in stream.heartbeats if beat.progress > before + 1][1:],
            "two that tell of progress",
        )
        assert {beat.applied_version for beat in beats} == {5}
        assert node.feed.image.version == 5, "clients are told at the end, too"
        assert beats[0].progress < beats[-1].progress or len(beats) == 1
        node.replicas.goes_on = False
        await stream.acknowledged(6)
        assert node.replicas.changed == [None, {("t", 3): None}], "an image may change all; a delta says what"


@asynchronous
async def test_a_change_that_breaks_off_is_followed_by_a_whole_image(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (node, _):
        stream = await controller.session(0)
        await stream.registered(5)
        await stream.image(5, me(5))
        await stream.acknowledged(5)
        node.replicas.goes_on = True
        await stream.metadata(6, Topic("t", "orders"))
        await until(lambda: len(node.replicas.changed) == 2, "the change begun")
        stream.ended.set()
        again = await controller.session(1)
        node.replicas.goes_on = False
        assert node.session.image.version == 5, "what broke off is not applied"
        await again.registered(5)
        await again.image(6, me(5), Topic("t", "orders"))
        await again.acknowledged(6)
        assert node.replicas.changed[-1] is None
        assert node.replicas.versions == [5, 6]


@asynchronous
async def test_each_change_is_applied_in_order_and_acknowledged_only_after_it_is_applied(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (node, _):
        stream = await controller.session(0)
        await stream.registered(5)
        await stream.image(5, me(5))
        for version in range(6, 26):
            await stream.metadata(version, NamedProducer("p", 1, version))
        await stream.acknowledged(25)
        assert node.replicas.versions == list(range(5, 26))
        assert node.replicas.applied[-1][0].fences == {1: 25}
        versions = [beat.applied_version for beat in stream.heartbeats]
        assert versions == sorted(versions)
        assert all(beat.ready == (beat.applied_version >= 5) for beat in stream.heartbeats)


@asynchronous
async def test_a_change_is_acknowledged_at_once_not_at_the_next_regular_heartbeat(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (_, _):
        stream = await controller.session(0)
        await stream.registered(1)
        await stream.image(1)
        await stream.acknowledged(1)
        loop = asyncio.get_running_loop()
        delays = []
        for version in range(2, 22):
            began = loop.time()
            await stream.metadata(version)
            await stream.acknowledged(version)
            delays.append(loop.time() - began)
        assert sorted(delays)[len(delays) // 2] < 0.025  # half of the interval between regular heartbeats


@asynchronous
async def test_heartbeats_go_on_while_nothing_happens(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (_, _):
        stream = await controller.session(0)
        await stream.registered(1)
        await stream.image(1)
        await until(lambda: len(stream.heartbeats) > 5, "six heartbeats")


@asynchronous
async def test_a_change_that_the_replicas_cannot_take_is_never_acknowledged_and_ends_the_process(
    tmp_path: Path,
) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (node, running):
        stream = await controller.session(0)
        await stream.registered(1)
        await stream.image(1)
        await stream.acknowledged(1)
        node.replicas.apply_error = StorageError("no room")
        await stream.metadata(2)
        with pytest.raises(InvariantBroken, match=r"version 2 was not applied.*no room"):
            await running
        assert max(beat.applied_version for beat in stream.heartbeats) == 1
        assert node.session.image.version == 1


@asynchronous
async def test_metadata_that_goes_back_ends_the_process(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (_, running):
        stream = await controller.session(0)
        await stream.registered(9)
        await stream.image(9)
        await stream.metadata(8)
        with pytest.raises(InvariantBroken, match="version 8 came after 9"):
            await running


@asynchronous
async def test_after_a_broken_stream_it_registers_again_as_the_same_process_and_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (node, _):
        first = await controller.session(0)
        await first.registered(5)
        await first.image(5, me(5))
        await first.acknowledged(5)
        first.ended.set()
        second = await controller.session(1)
        assert second.registration.incarnation == first.registration.incarnation
        assert second.registration.cluster_id == CLUSTER_ID
        assert not second.registration.may_have_lost_tail  # told once, and acknowledged
        await second.registered(5)
        await second.image(6, me(5), Topic("t", "orders"))
        await second.acknowledged(6)
        assert [(image.version, epoch) for image, epoch in node.replicas.applied] == [(5, 5), (6, 5)]


@asynchronous
async def test_a_loss_is_reported_again_until_a_registration_is_acknowledged(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (_, _):
        first = await controller.session(0)
        assert first.registration.may_have_lost_tail
        first.ended.set()  # the controller died before its answer
        second = await controller.session(1)
        assert second.registration.may_have_lost_tail


@asynchronous
async def test_declared_dead_it_registers_anew_and_is_not_ready_before_its_new_epoch_is_applied(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (node, _):
        first = await controller.session(0)
        await first.registered(5)
        await first.image(5, me(5))
        await first.acknowledged(5)
        await first.error(StaleBrokerEpoch("broker 7 was declared dead"))
        second = await controller.session(1)
        await second.registered(12)
        await until(lambda: second.heartbeats, "a heartbeat before the image")
        assert not second.heartbeats[-1].ready
        await second.image(12, me(12))
        assert (await second.acknowledged(12)).ready
        assert node.replicas.applied[-1][1] == 12
        assert node.link.broker_epoch == 12


@pytest.mark.parametrize(
    "refusal",
    [
        DuplicateBrokerRegistration("broker id 7 is in use at 10.0.0.1:9092"),
        InconsistentClusterId("cluster a is not cluster b"),
    ],
)
@asynchronous
async def test_a_refusal_that_no_repetition_helps_against_ends_the_process(
    tmp_path: Path, refusal: DuplicateBrokerRegistration | InconsistentClusterId
) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (node, running):
        stream = await controller.session(0)
        await stream.error(refusal)
        with pytest.raises(type(refusal), match=refusal.message):
            await running
        assert not node.replicas.applied
        assert not (tmp_path / "meta.properties").exists()


@asynchronous
async def test_a_folder_of_another_cluster_is_refused_naming_both_and_left_as_it_was(tmp_path: Path) -> None:
    async with fake_controller() as controller:
        folder = DataFolder(RealDisk(), str(tmp_path), BROKER_ID)
        folder.open()
        folder.registered("cluster-before", 1)
        folder.mark_clean()
        before = (tmp_path / "meta.properties").read_bytes()
        node = Node(tmp_path, controller.address)
        node.folder.open()
        node.known.open()
        running = asyncio.create_task(node.session.run())
        stream = await controller.session(0)
        assert stream.registration.cluster_id == "cluster-before"
        await stream.registered(1)
        with pytest.raises(InconsistentClusterId, match=r"cluster-before.*cluster-of-the-test"):
            await running
        assert (tmp_path / "meta.properties").read_bytes() == before
        await node.link.close()


@asynchronous
async def test_it_waits_for_a_controller_that_is_not_there_yet(tmp_path: Path) -> None:
    fake = FakeController()
    async with fake_controller(fake=fake):
        address = fake.address
    async with node_of(address, tmp_path) as (node, running):
        with pytest.raises(NotController, match=address):
            await node.link.allocate_producer_ids()
        assert not running.done()
        async with fake_controller(address, fake):
            stream = await fake.session(0)
            await stream.registered(1)
            await stream.image(1)
            await asyncio.wait_for(node.session.was_ready.wait(), 10)


@asynchronous
async def test_failed_replicas_are_reported_at_once_when_asked(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (node, _):
        stream = await controller.session(0)
        await stream.registered(1)
        await stream.image(1)
        await stream.acknowledged(1)
        node.replicas.failed_replicas = [("t", 3)]
        node.link.request_heartbeat()
        await until(
            lambda: [(r.topic_id, r.partition) for r in stream.heartbeats[-1].failed_replicas] == [("t", 3)],
            "a heartbeat with the failed replica",
        )


@asynchronous
async def test_a_controlled_shutdown_asks_waits_and_says_goodbye_last(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (node, running):
        stream = await controller.session(0)
        await stream.registered(1)
        await stream.image(1)
        await stream.acknowledged(1)
        handing_over = asyncio.create_task(node.session.hand_over(10))
        await until(lambda: stream.heartbeats[-1].want_shutdown, "a heartbeat that wants to shut down")
        await stream.metadata(2)  # another broker takes over
        await stream.acknowledged(2)
        assert not handing_over.done()
        await stream.shutdown_allowed()
        assert await handing_over
        assert not stream.said_goodbye
        await node.session.goodbye()
        await running
        assert stream.said_goodbye
        assert len(controller.sessions) == 1


@asynchronous
async def test_a_shutdown_does_not_wait_for_ever_for_the_controller(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (node, running):
        stream = await controller.session(0)
        await stream.registered(1)
        await stream.image(1)
        await stream.acknowledged(1)
        assert not await node.session.hand_over(0.05)
        await node.session.goodbye()
        await running


@asynchronous
async def test_a_stream_that_breaks_at_the_moment_of_the_cancellation_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding = asyncio.Event()

    async def hold(_: ControllerSession) -> None:
        holding.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise SessionBroken("the stream ended") from None

    monkeypatch.setattr(ControllerSession, "_hold", hold)
    async with node_of("127.0.0.1:1", tmp_path) as (_, running):
        await holding.wait()
        running.cancel()
        await asyncio.wait([running], timeout=5)
        assert running.cancelled()


@asynchronous
async def test_clients_see_what_the_session_applied(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path) as (node, _):
        stream = await controller.session(0)
        await stream.registered(1)
        await stream.image(1, me(1))
        assert await node.feed.wait_known(10)
        with node.feed.watch() as watcher:
            first = await watcher.next()
            assert first is not None
            assert first.image
            assert first.version == 1
            await stream.metadata(2, NamedProducer("p", 1, 1), Topic("t", "orders"))
            second = await watcher.next()
            assert second is not None
            assert [entity.WhichOneof("kind") for entity in second.changed] == ["topic"]


@asynchronous
async def test_sessions_that_break_at_once_are_held_again_with_growing_pauses(tmp_path: Path) -> None:
    async with fake_controller() as controller, node_of(controller.address, tmp_path):
        began = asyncio.get_running_loop().time()
        for number in range(6):
            stream = await controller.session(number)
            await stream.registered(5)
            stream.ended.set()
        assert asyncio.get_running_loop().time() - began > 0.5  # at least 0.05, 0.1, 0.2, 0.25 and 0.25 s between them
