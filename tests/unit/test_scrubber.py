"""The scrubber: when a pass begins, how fast it goes, and what it does with what it finds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fencepost_node.config import BrokerConfig
from fencepost_node.log.disk import RealDisk
from fencepost_node.log.log import CorruptLog, Log
from fencepost_node.maintenance import scrubber as scrubber_module
from fencepost_node.maintenance.scrubber import LAST_SCRUB, Scrubber
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.tasks import Tasks
from tests.unit.logs import Machine, fill, open_log

DAY_MS = 24 * 3_600_000
NOW_MS = 1_700_000_000_000


class FakeReplica:
    """What the scrubber asks of a replica."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.failure = ""
        self.refused: list[BaseException] = []

    def disk_refuses(self, error: BaseException) -> None:
        self.refused.append(error)
        self.failure = str(error)


def filled(machine: Machine) -> Log:
    log = open_log(machine.mount())
    fill(log)
    log.maintain()
    return log


async def scrubbing(
    path: Path,
    replicas: dict[Any, FakeReplica],
    story: Callable[[Scrubber], Awaitable[None]],
    **settings: Any,
) -> None:
    failures: list[BaseException] = []
    config = BrokerConfig(broker_id=1, data_dir=str(path), controller="localhost:1", **settings)
    tasks = Tasks(failures.append)
    scrubber = Scrubber(Host(wall_clock_ms=lambda: NOW_MS), RealDisk(), config, replicas, tasks)  # type: ignore[arg-type]
    scrubber.start()
    try:
        async with asyncio.timeout(20):
            await story(scrubber)
    finally:
        await tasks.close()
    assert failures == []


async def passed(scrubber: Scrubber, passes: int = 1) -> None:
    while scrubber.passes < passes:  # noqa: ASYNC110 - under the timeout of `scrubbing`
        await asyncio.sleep(0.005)


def test_a_pass_reads_all_and_no_faster_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In small pieces, each followed by a pause that makes the rate."""
    logs = [filled(Machine(seed)) for seed in (1, 2)]
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def counted(seconds: float) -> None:
        if seconds != 0.005:
            pauses.append(seconds)
        await sleep(0.001)

    monkeypatch.setattr(scrubber_module, "PIECE_BYTES", 300)
    monkeypatch.setattr(asyncio, "sleep", counted)
    replicas = {("T", number): FakeReplica(log) for number, log in enumerate(logs)}

    async def story(scrubber: Scrubber) -> None:
        scrubber.scrub_now()
        await passed(scrubber)

    asyncio.run(scrubbing(tmp_path, replicas, story, scrub_bytes_per_second=64 * 1024))
    size = sum(log.size_bytes for log in logs)
    last_pieces = 2 * max(pauses)  # no pause stands behind the last piece of a log
    assert size - last_pieces * 64 * 1024 <= sum(pauses) * 64 * 1024 <= size
    assert len(pauses) > 10
    assert all(replica.refused == [] for replica in replicas.values())


@pytest.mark.parametrize(
    ("last", "begins"),
    [("-8", True), ("-6", False), ("", False), ("rubbish", False), ("+3", False)],
)
def test_when_a_pass_begins_is_kept_across_restarts(tmp_path: Path, last: str, begins: bool) -> None:
    """By the file `last-scrub`, which has the end of the last one, in days from now here. Where it is not there, cannot be
    read or lies in the future, the interval begins now: no restart, and no step of a clock, begins a pass."""
    if last:
        noted = last if last == "rubbish" else str(NOW_MS + int(last) * DAY_MS)
        (tmp_path / LAST_SCRUB).write_text(noted)

    async def story(scrubber: Scrubber) -> None:
        if begins:
            await passed(scrubber)
        else:
            await asyncio.sleep(0.2)
            assert scrubber.passes == 0

    asyncio.run(scrubbing(tmp_path, {}, story))
    if begins or last in ("", "rubbish"):
        assert int((tmp_path / LAST_SCRUB).read_text()) == NOW_MS


def test_without_an_interval_only_what_is_asked_for_is_scrubbed(tmp_path: Path) -> None:
    (tmp_path / LAST_SCRUB).write_text("1")

    async def story(scrubber: Scrubber) -> None:
        await asyncio.sleep(0.2)
        assert scrubber.passes == 0
        scrubber.scrub_now()
        await passed(scrubber)

    asyncio.run(scrubbing(tmp_path, {}, story, scrub_interval_ms=0))


def test_damage_is_the_replicas_to_deal_with_and_the_other_logs_are_read(tmp_path: Path) -> None:
    """One that has failed already is left alone."""
    machines = [Machine(seed) for seed in (1, 2, 3)]
    replicas = {("T", number): FakeReplica(filled(machine)) for number, machine in enumerate(machines)}
    replicas["T", 0].failure = "it has failed before"
    segment = replicas["T", 1].log._row.all[1]
    machines[1].disk.corrupt(segment.path, 70)

    async def story(scrubber: Scrubber) -> None:
        scrubber.scrub_now()
        await passed(scrubber)

    asyncio.run(scrubbing(tmp_path, replicas, story))
    assert [type(error) for error in replicas["T", 1].refused] == [CorruptLog]
    assert [replicas["T", number].refused for number in (0, 2)] == [[], []]
