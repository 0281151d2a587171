"""A log that an image does not know is set aside; one whose deletion is told is deleted."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from fencepost_node.folders import stray_logs
from fencepost_node.folders.partition_folders import PartitionFolders
from fencepost_node.log.disk import RealDisk
from fencepost_node.log.names import PARTITION_METADATA
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import Partition, delta_to_proto
from fencepost_proto.protocol.v1 import controller_pb2
from fencepost_proto.runtime.host import Host
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.unit.fake_controller import fake_controller
from tests.unit.test_broker import BROKER_ID, CONTROLLER_AWAY, ORDERS, TOPIC, batch, broker_of, config_of, produce_batch

LED = Partition(TOPIC, 0, (BROKER_ID,), (BROKER_ID,), BROKER_ID, 1, 1)
STRAY = re.compile(r"orders-0\.\d+\.stray")


def strays(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if STRAY.fullmatch(path.name)]


@asynchronous
async def test_a_log_that_the_image_does_not_know_is_set_aside_and_opened_again_when_its_topic_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_controller() as controller:
        async with broker_of(controller, tmp_path) as running:
            await running.leads()
            (result,) = await running.produce(produce_batch(batch([b"a", b"b"], (9, 0, 0))))
            assert result.error.code == ErrorCode.NONE
        async with broker_of(controller, tmp_path) as without:
            await until(lambda: strays(tmp_path), "the log set aside")
            (aside,) = strays(tmp_path)
            said = "does not know is set aside topic_id=topic-id-of-orders partition=0"
            await until(lambda: said in caplog.text, "the warning")
            assert not (tmp_path / "orders-0").exists()
            await without.metadata(ORDERS, LED)
            await until(lambda: (TOPIC, 0) in without.broker.manager.replicas, "the log opened again")
            assert not aside.exists()
            (repeat,) = await without.produce(produce_batch(batch([b"a", b"b"], (9, 0, 0))))
            assert (repeat.duplicate, repeat.base_offset) == (True, 0)


@asynchronous
async def test_a_stray_log_outlives_a_restart_and_its_topic_finds_it_at_the_next_start(tmp_path: Path) -> None:
    async with fake_controller() as controller:
        async with broker_of(controller, tmp_path) as running:
            await running.leads()
            await running.produce(produce_batch(batch([b"a", b"b"], (9, 0, 0))))
        async with broker_of(controller, tmp_path):
            await until(lambda: strays(tmp_path), "the log set aside")
        async with broker_of(controller, tmp_path, known=[ORDERS, LED]) as again:
            await until(lambda: (TOPIC, 0) in again.broker.manager.replicas, "the log opened again")
            assert again.broker.manager.replicas[TOPIC, 0].log.log_end_offset == 2


@asynchronous
async def test_a_log_whose_deletion_is_received_is_deleted(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        await running.leads()
        await running.produce(produce_batch(batch([b"a"], (9, 0, 0))))
        deleted = delta_to_proto(99, [], [LED.key, ORDERS.key])
        await running.session._context.write(controller_pb2.SessionResponse(metadata=deleted))
        await until(lambda: not (tmp_path / "orders-0").exists(), "the folder gone")
        assert not strays(tmp_path)


@asynchronous
async def test_a_log_that_an_image_no_longer_has_in_the_middle_of_a_session_is_set_aside(tmp_path: Path) -> None:
    async with fake_controller() as controller, broker_of(controller, tmp_path) as running:
        await running.leads()
        await running.produce(produce_batch(batch([b"a"], (9, 0, 0))))
        await running.session.image(99)
        await until(lambda: strays(tmp_path), "the log set aside")


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


def stray_folder(path: Path, name: str) -> Path:
    folder = path / name
    folder.mkdir()
    (folder / PARTITION_METADATA).write_text("version=0\ntopic_id=t\n")
    return folder


@asynchronous
async def test_a_stray_log_is_removed_when_its_time_has_come_and_not_for_a_clock_that_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stray_logs, "CHECK_INTERVAL_S", 0.01)

    clock = Clock()
    config = config_of(tmp_path, CONTROLLER_AWAY, stray_retention_ms=300)
    logs = PartitionFolders(Host(wall_clock_ms=clock), RealDisk(), config).strays
    folder = stray_folder(tmp_path, "orders-0.999900.stray")
    logs.found(folder.name)
    watching = asyncio.create_task(logs.watch())
    clock.now_ms += 10_000_000  # by the clock its time has come
    await asyncio.sleep(0.15)
    assert folder.exists()  # this process has not seen it for 300 ms yet
    await until(lambda: not folder.exists(), "its removal")
    watching.cancel()


def test_a_strange_name_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PartitionFolders(Host(), RealDisk(), config_of(tmp_path, CONTROLLER_AWAY)).strays.found("what-ever.stray")
    assert "what-ever.stray is no name that a broker gives" in caplog.text


def test_a_log_with_the_longest_name_is_set_aside_and_comes_back(tmp_path: Path) -> None:
    folders = PartitionFolders(Host(), RealDisk(), config_of(tmp_path, CONTROLLER_AWAY))
    folder = tmp_path / ("x" * 249 + "-0")
    folder.mkdir()
    folders.strays.set_aside(str(folder), ("t", 0))
    assert not folder.exists()
    assert folders.strays.take_back(("t", 0), str(folder))
    assert folder.exists()
