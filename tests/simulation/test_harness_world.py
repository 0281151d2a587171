"""The simulated world itself: virtual time, kills, pauses, cuts, power failures, and the same run twice."""

from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import os
import random
import subprocess
import sys
import time
from typing import Any

import grpc
import pytest

from fencepost_proto.protocol.v1 import replication_pb2, replication_pb2_grpc
from fencepost_proto.runtime.host import Host
from fencepost_proto.transport.wire import serve
from tests.simulation.disk import Fault, MountedDisk, SimDisk
from tests.simulation.loop import Deadlock, ProcessEnded, Runaway, SimLoop, collector_off
from tests.simulation.process import SimProcess
from tests.simulation.world import World

replication_stub: Any = replication_pb2_grpc.ReplicationStub
ADDRESS = "server:9000"


class Echo(replication_pb2_grpc.ReplicationServicer):
    """Answers each request with its number."""

    async def Replicate(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        while (message := await context.read()) is not grpc.aio.EOF:
            push = replication_pb2.PartitionPush(base_offset=message.broker_id)
            await context.write(replication_pb2.ReplicateResponse(pushes=[push]))


async def echo_server(host: Host, disk: MountedDisk) -> None:
    await serve(host.wire, ADDRESS, [], lambda s: replication_pb2_grpc.add_ReplicationServicer_to_server(Echo(), s))
    await asyncio.sleep(1e6)


class Pinger:
    """A client that asks again and again, and notes what it gets."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.errors: list[str] = []
        self.cleaned_up = 0

    async def run(self, host: Host, disk: MountedDisk) -> None:
        channel = host.wire.connect(ADDRESS)
        number = 0
        try:
            while True:
                call = replication_stub(channel).Replicate()
                try:
                    while True:
                        number += 1
                        await call.write(replication_pb2.ReplicateRequest(broker_id=number))
                        answer = await call.read()
                        self.answers.append(answer.pushes[0].base_offset)
                        await asyncio.sleep(host.random.random() * 0.01)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:  # it broke under us, or before
                    self.errors.append(error.code().name if isinstance(error, grpc.aio.AioRpcError) else "finished")
                    await asyncio.sleep(0.01)
        finally:
            self.cleaned_up += 1


@pytest.fixture
def world() -> Any:
    with collector_off(), World(7) as world:
        yield world
        assert world.failures() == []


# ---- Time ----


def test_a_day_of_sleeping_takes_no_time() -> None:
    loop = SimLoop(random.Random(0))
    began = time.monotonic()
    loop.run_until_complete(asyncio.sleep(86_400))
    assert loop.time() == 86_400
    assert time.monotonic() - began < 1
    loop.close()


def test_timers_of_one_moment_run_in_the_order_of_their_making() -> None:
    loop = SimLoop(random.Random(0))
    seen: list[int] = []
    for number in range(50):
        loop.call_at(1.0, seen.append, number)
    loop.run_until_complete(asyncio.sleep(2))
    assert seen == list(range(50))
    loop.close()


def test_threads_run_on_the_loop_a_little_later_and_hand_back_results_and_errors() -> None:
    loop = SimLoop(random.Random(0))

    async def story() -> None:
        began = loop.time()
        assert await asyncio.to_thread(lambda: 5) == 5
        assert 0 < loop.time() - began < 0.01
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)

    loop.run_until_complete(story())
    loop.close()


def test_waiting_for_nothing_is_a_deadlock_and_spinning_is_noticed() -> None:
    loop = SimLoop(random.Random(0))
    with pytest.raises(Deadlock):
        loop.run_until_complete(loop.create_future())

    async def spin() -> None:
        while True:  # noqa: ASYNC110 - the mistake that is to be noticed
            await asyncio.sleep(0)

    with pytest.raises(Runaway):
        loop.run_until_complete(spin())
    loop.forget()
    loop.close()


def test_a_failed_task_that_no_one_awaits_is_a_failure_of_the_run() -> None:
    loop = SimLoop(random.Random(0))

    async def fail() -> None:
        raise ValueError("unseen")

    async def story() -> None:
        _ = asyncio.ensure_future(fail())
        del _
        await asyncio.sleep(1)

    loop.run_until_complete(story())
    gc.collect()  # from Python 3.13 on the frame of a failed task is part of a cycle
    assert loop.failures == ["SimTask exception was never retrieved: ValueError('unseen')"]
    loop.close()


# ---- Processes ----


def test_a_killed_process_runs_no_finally_and_its_peer_sees_the_stream_break(world: World) -> None:
    pinger = Pinger()

    async def story() -> None:
        world.start("server", echo_server)
        world.start("client", pinger.run)
        await asyncio.sleep(1)
        assert len(pinger.answers) > 50
        world.kill("server")
        await asyncio.sleep(0.02)
        assert "UNAVAILABLE" in pinger.errors
        world.start("server", echo_server)
        before = len(pinger.answers)
        await asyncio.sleep(1)
        assert len(pinger.answers) > before
        world.kill("client")
        before = len(pinger.answers)
        await asyncio.sleep(1)
        assert len(pinger.answers) == before
        assert pinger.cleaned_up == 0

    world.run(story())


def test_a_paused_process_stands_still_and_goes_on_where_it_was(world: World) -> None:
    pinger = Pinger()

    async def story() -> None:
        world.start("server", echo_server)
        world.start("client", pinger.run)
        await asyncio.sleep(1)
        world.pause("server")
        await asyncio.sleep(0.01)
        before = len(pinger.answers)
        await asyncio.sleep(5)
        assert (len(pinger.answers), pinger.errors) == (before, [])
        world.resume("server")
        await asyncio.sleep(0.1)
        assert len(pinger.answers) > before
        assert pinger.errors == []
        world.pause("server")
        await asyncio.sleep(20)  # keep-alive gives it up
        assert pinger.errors

    world.run(story())


def test_a_cut_in_either_direction_holds_messages_until_it_heals_or_keepalive_gives_up(world: World) -> None:
    pinger = Pinger()

    async def story() -> None:
        world.start("server", echo_server)
        world.start("client", pinger.run)
        for source, target in (("client", "server"), ("server", "client")):
            await asyncio.sleep(1)
            world.network.cut(source, target)
            before = len(pinger.answers)
            await asyncio.sleep(3)
            assert len(pinger.answers) <= before + 1
            world.network.heal(source, target)
            await asyncio.sleep(2)
            assert len(pinger.answers) > before + 10
        assert pinger.errors == []
        assert pinger.answers == list(range(1, len(pinger.answers) + 1))  # nothing was lost: the streams held
        world.network.cut("client", "server")
        await asyncio.sleep(20)
        assert pinger.errors

    world.run(story())


def test_a_machine_without_power_answers_nothing_and_its_peers_learn_when_it_is_back(world: World) -> None:
    pinger = Pinger()

    async def story() -> None:
        world.start("server", echo_server)
        world.start("client", pinger.run)
        await asyncio.sleep(1)
        world.power_failure("server")
        await asyncio.sleep(5)
        assert pinger.errors == []  # silence
        world.power_on("server")
        await asyncio.sleep(0.1)
        assert "UNAVAILABLE" in pinger.errors

    world.run(story())


def test_wall_clocks_jump_and_loop_time_does_not(world: World) -> None:
    seen: list[int] = []

    async def main(host: Host, disk: MountedDisk) -> None:
        while True:
            seen.append(host.wall_clock_ms())
            await asyncio.sleep(1)

    async def story() -> None:
        world.start("a", main)
        await asyncio.sleep(1.5)
        world.machines["a"].wall_clock_offset_ms = -10_000
        await asyncio.sleep(1)
        assert [value - seen[0] for value in seen] == [0, 1000, -8000]

    world.run(story())


def test_a_dead_process_can_do_nothing_with_its_handles(world: World) -> None:
    mounts: list[MountedDisk] = []

    async def main(host: Host, disk: MountedDisk) -> None:
        mounts.append(disk)
        await asyncio.sleep(1e6)

    async def story() -> None:
        world.start("a", main)
        await asyncio.sleep(1)
        world.kill("a")
        with pytest.raises(ProcessEnded):
            mounts[0].make_directory("/data")

    world.run(story())


def test_a_process_can_die_in_the_middle_of_a_disk_operation(world: World) -> None:
    reached: list[str] = []

    async def main(host: Host, disk: MountedDisk) -> None:
        try:
            disk.make_directory("/data")
            disk.write_atomically("/data/file", b"x")
            reached.append("after")
        except Exception:  # noqa: BLE001 - nothing of this kind may see the kill
            reached.append("caught")

    async def story() -> None:
        disk = world.machine("a").disk
        disk.crash_at_operation = 4
        disk.on_crash = lambda: world.kill("a")
        world.start("a", main)
        await asyncio.sleep(1)
        assert reached == []
        assert [path for path, _ in disk.files()] == ["/data/file.tmp"]

    world.run(story())


# ---- Disks ----


def mounted(seed: int = 0) -> tuple[SimDisk, MountedDisk]:
    loop = SimLoop(random.Random(seed))
    disk = SimDisk("d", random.Random(seed))
    mount = disk.mount(SimProcess(loop, "d", random.Random(seed)))
    mount.make_directory("/data")
    loop.close()
    return disk, mount


def test_a_power_failure_keeps_what_was_synced_and_some_of_the_rest() -> None:
    outcomes = set()
    for seed in range(200):
        disk, mount = mounted(seed)
        file = mount.open("/data/log", create=True)
        mount.sync_directory("/data")
        file.append(b"synced--")
        file.sync()
        file.append(b"0123456789")
        disk.lose_power()
        content = mount.read_bytes("/data/log")
        assert content[:8] == b"synced--"
        rest = content[8:]
        outcomes.add("none" if not rest else "torn" if not b"0123456789".startswith(rest) else f"{len(rest)} kept")
    assert {"none", "torn", "10 kept"} < outcomes
    assert len(outcomes) > 6


def test_a_cut_that_was_not_synced_may_come_undone_in_a_power_failure() -> None:
    outcomes = set()
    for seed in range(50):
        disk, mount = mounted(seed)
        file = mount.open("/data/log", create=True)
        mount.sync_directory("/data")
        file.append(b"abcdef")
        file.sync()
        file.truncate(3)
        assert mount.read_bytes("/data/log") == b"abc"
        disk.lose_power()
        outcomes.add(mount.read_bytes("/data/log"))
    assert outcomes == {b"abc", b"abcdef"}


def test_entries_of_a_folder_that_was_not_synced_may_be_lost_but_never_a_synced_one() -> None:
    outcomes = set()
    for seed in range(50):
        disk, mount = mounted(seed)
        mount.write_atomically("/data/kept", b"1")
        mount.open("/data/new", create=True)
        mount.rename("/data/kept", "/data/renamed")
        disk.lose_power()
        outcomes.add(tuple(mount.list("/data")))
    assert outcomes == {("kept",), ("kept", "new"), ("new", "renamed")}


def test_a_killed_process_leaves_the_page_cache() -> None:
    disk, mount = mounted()
    mount.open("/data/log", create=True).append(b"unsynced")
    assert disk.file("/data/log").content == b"unsynced"


def test_a_full_disk_takes_a_part_and_says_so() -> None:
    disk, mount = mounted()
    file = mount.open("/data/log", create=True)
    disk.capacity_bytes = 10
    with pytest.raises(OSError, match="no space") as raised:
        file.append(b"x" * 16)
    assert (raised.value.errno, file.size) == (errno.ENOSPC, 10)
    disk.capacity_bytes = None
    file.append(b"y")


def test_a_failed_sync_loses_the_pages_for_good() -> None:
    disk, mount = mounted()
    file = mount.open("/data/log", create=True)
    mount.sync_directory("/data")
    file.append(b"lost")
    disk.faults.append(Fault(("sync",), errno.EIO, "log"))
    with pytest.raises(OSError, match="simulated"):
        file.sync()
    file.sync()  # succeeds, and saves nothing
    disk.lose_power()
    assert mount.read_bytes("/data/log") == bytes(4)


def test_the_boot_id_changes_with_a_power_failure_only() -> None:
    disk, mount = mounted()
    first = mount.boot_id()
    assert mount.boot_id() == first
    disk.lose_power()
    assert mount.boot_id() != first


# ---- The same run twice ----

STORY = """
import asyncio, hashlib
from tests.simulation.loop import collector_off
from tests.simulation.test_harness_world import run_of_everything
print(run_of_everything(3))
"""


def run_of_everything(seed: int) -> str:
    """A digest of all that happened in a run with kills, pauses, cuts and power failures."""
    with collector_off(), World(seed) as world:
        pingers = [Pinger() for _ in range(3)]

        async def story() -> None:
            chance = world.chance("story")
            world.start("server", echo_server)
            for number, pinger in enumerate(pingers):
                world.start(f"client-{number}", pinger.run)
            for _ in range(30):
                await asyncio.sleep(chance.random())
                match chance.randrange(4):
                    case 0:
                        world.kill("server")
                    case 1:
                        world.pause("server")
                        await asyncio.sleep(chance.random())
                        world.resume("server")
                    case 2:
                        world.network.cut("server", "client-1")
                    case _:
                        world.network.heal_all()
                process = world.machines["server"].process
                if process is not None and not process.alive:
                    world.start("server", echo_server)

        world.run(story())
        assert all(len(pinger.answers) > 100 for pinger in pingers)
        text = repr([(p.answers, p.errors) for p in pingers]) + f" {world.loop.callbacks_run} {world.now!r}"
    return hashlib.sha256(text.encode()).hexdigest()


def test_one_seed_is_one_run_whatever_the_hash_seed_of_the_interpreter() -> None:
    digests = {run_of_everything(3)}
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", STORY], env=env, capture_output=True, text=True, check=True)
        digests.add(done.stdout.strip())
    assert len(digests) == 1
    assert run_of_everything(4) not in digests
