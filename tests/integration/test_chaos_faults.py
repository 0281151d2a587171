"""Faults of chaos that do more than send signals: each happens on a running cluster, and the log is what it must be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from unittest.mock import Mock

import pytest

from fencepost import AdminClient, Producer
from fencepost.history import History
from fencepost_proto.protocol.errors import FencepostError
from fencepost_testing.chaos.faults import Fault, FaultKind
from fencepost_testing.chaos.nemesis import Executor
from fencepost_testing.chaos.nemesis_log import Happened, NemesisLog
from fencepost_testing.chaos.run import BROKER_SETTINGS, CONTROLLER_SETTINGS
from fencepost_testing.history_check import Verdict, check_history
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.read_back import read_everything
from fencepost_testing.topic_waits import wait_in_sync, wait_settled
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous

ClusterFactory = Callable[..., AsyncLocalCluster]

EVERYBODY = ("broker-1", "broker-2", "broker-3")
PAUSE_S = 0.01  # between two records


class Harm:
    """A cluster of three, a topic of one partition with three replicas, and a producer at work."""

    def __init__(self, cluster: AsyncLocalCluster, executor: Executor, log: NemesisLog, lines: list[str]) -> None:
        self.cluster = cluster
        self._executor = executor
        self._log = log
        self._lines = lines

    @property
    def acked(self) -> int:
        return sum('"type":"ok","op":"send"' in line for line in self._lines)

    async def fault(self, kind: FaultKind, *targets: str, duration_s: float = 1.0) -> Happened:
        """Carry it out, to its end."""
        await self._executor.run([Fault(0.0, duration_s, kind, targets or EVERYBODY, partition=0)])
        assert self._executor.problems == []
        assert not self._log.skipped
        return self._log.happened[-1]

    async def write(self, history: History, stop: asyncio.Event) -> None:
        number = 0
        async with Producer(self.cluster.bootstrap, history=history, linger_ms=5) as producer:
            while not stop.is_set():
                await asyncio.sleep(PAUSE_S)
                number += 1
                try:
                    await producer.send("chaos", b"%d:".ljust(200, b".") % number)
                except FencepostError:
                    continue

    async def goes_on(self) -> None:
        before = self.acked
        await until(lambda: self.acked > before + 20, "more is acknowledged", timeout_s=30)

    async def verdict(self, admin: AdminClient, last_history: Path) -> Verdict:
        """Once nothing more is written: read everything, and judge."""
        await wait_settled(admin, "chaos")
        await read_everything(self.cluster.bootstrap, "chaos", last_history)
        return check_history([*self._lines, *(await asyncio.to_thread(last_history.read_text)).splitlines()])


@asynccontextmanager
async def harm(cluster_factory: ClusterFactory, tmp_path: Path) -> AsyncIterator[Harm]:
    """Whatever is done meanwhile: in the end everything is in sync again, and the history is clean but for what the operator
    was shown."""
    lines: list[str] = []
    cluster = cluster_factory(brokers=3, controller_overrides=CONTROLLER_SETTINGS, broker_overrides=BROKER_SETTINGS)
    stop, log = asyncio.Event(), NemesisLog(tmp_path / "nemesis.jsonl", time.monotonic(), lambda line: None)
    async with cluster, AdminClient(cluster.bootstrap) as admin:
        await admin.create_topic(
            "chaos", partitions=1, replication_factor=3, min_insync_replicas=2, segment_bytes=16 * 1024
        )
        await wait_in_sync(admin, "chaos")
        history, operators = History(lines.append, process="producer"), History(lines.append, process="operator")
        with closing(log):
            executor = Executor(cluster, Mock(topic="chaos"), admin, None, log, duration_s=1_000.0, history=operators)
            harmed = Harm(cluster, executor, log, lines)
            writer = asyncio.create_task(harmed.write(history, stop))
            try:
                await harmed.goes_on()
                yield harmed
                await harmed.goes_on()
            finally:
                stop.set()
                await writer
        await wait_in_sync(admin, "chaos")
        verdict = await harmed.verdict(admin, tmp_path / "final.jsonl")
        assert verdict.clean, [finding.text for finding in verdict.findings]
        harmed_by_elections = [happened for happened in log.happened if "unclean" in happened.fault.kind.value]
        assert verdict.elections == len(harmed_by_elections)
        assert (verdict.lost_as_told > 0) == bool(harmed_by_elections)


@pytest.mark.parametrize("kind", [FaultKind.UNCLEAN_AFTER_PAUSE, FaultKind.UNCLEAN_AFTER_KILL])
@asynchronous
async def test_an_unclean_election_takes_what_the_operator_was_shown(
    cluster_factory: ClusterFactory, tmp_path: Path, kind: FaultKind
) -> None:
    async with harm(cluster_factory, tmp_path) as harmed:
        happened = await harmed.fault(kind, "broker-2", duration_s=1.5)  # something is acknowledged meanwhile
        assert "broker 2 is elected: kept below " in happened.note


@asynchronous
async def test_a_flipped_byte_is_found_on_a_leader_and_on_a_follower(
    cluster_factory: ClusterFactory, tmp_path: Path
) -> None:
    async with harm(cluster_factory, tmp_path) as harmed:
        await until(lambda: harmed.acked > 120, "more than a segment is stored")
        for kind in (FaultKind.FLIP_LEADERS_BYTE, FaultKind.FLIP_FOLLOWERS_BYTE):
            happened = await harmed.fault(kind)
            assert happened.note.startswith("byte "), happened.note
            (broker,) = happened.targets
            folder = harmed.cluster.member(int(broker.removeprefix("broker-"))).directory
            assert list(folder.glob("chaos-0.*.damaged")), "the damaged log is kept aside"
            await harmed.goes_on()


@asynchronous
async def test_disks_that_are_full_have_room_again(cluster_factory: ClusterFactory, tmp_path: Path) -> None:
    async with harm(cluster_factory, tmp_path) as harmed:
        await harmed.fault(FaultKind.FILL_LEADERS_DISK, "leader-0", duration_s=1.0)
        await harmed.goes_on()
        full = asyncio.create_task(harmed.fault(FaultKind.FILL_ALL_DISKS, duration_s=2.5))
        await asyncio.sleep(1)  # for what was acknowledged before to be told
        before = harmed.acked
        await asyncio.sleep(1)
        assert harmed.acked == before, "nothing can be stored"
        await full
