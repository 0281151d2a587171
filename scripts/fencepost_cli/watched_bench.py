"""What metrics and the live page cost a cluster that is under load: pairs of bursts, with and without, in turns.

Two clusters of three brokers stand side by side. One hands out no metrics and no page looks at it; of the other every
process is scraped once a second, and a page is open on it, whose events are read (`onlooker`). Each pair is one burst to
each, in an order that changes from pair to pair; while it is the other's turn, page and onlooker are paused. A machine that
does other things meanwhile disturbs single pairs, so the median counts, and more pairs follow until it is known closely
enough. What the processes of a cluster, its page and the client take of a processor is less disturbed than the time that
passes.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median

import psutil

from fencepost import Producer
from fencepost_cli.small_batches import cpu_s
from fencepost_testing.background_loop import run_in_background
from fencepost_testing.local_cluster import LocalCluster

BURST_RECORDS = 400_000
RECORD = b"x" * 100
PARTITIONS = 6
MIN_PAIRS = 8
MAX_PAIRS = 40
CLOSE_ENOUGH = 0.015  # half of the interval in which the median lies
WARM_UP_RECORDS = 50_000
CATCH_UP_S = 2.0  # for a page that was paused, or has just started
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Burst:
    """What one has cost."""

    records_per_s: float
    cpu_us: float  # of all processes together, for a record


@dataclass(frozen=True, slots=True)
class Watched:
    """Losses by metrics and page, in per cent of what is without them."""

    throughput: list[float]
    cpu: list[float]

    @property
    def half_width(self) -> float:
        return 100 * half_width_of_median([loss / 100 for loss in self.throughput])


def measure_watched(
    tell: Callable[[str], object],
    *,
    min_pairs: int = MIN_PAIRS,
    max_pairs: int = MAX_PAIRS,
    burst_records: int = BURST_RECORDS,
) -> Watched:
    """Pairs until the median is known closely enough."""
    without_metrics = {"metrics_listen": ""}
    plain = LocalCluster(
        brokers=3, faults=False, broker_overrides=without_metrics, controller_overrides=without_metrics
    )
    watched = LocalCluster(brokers=3, faults=False)
    losses = Watched([], [])
    with plain, watched, _Sender(plain) as to_plain, _Sender(watched) as to_watched, _Watchers(watched) as watchers:

        def without() -> Burst:
            return to_plain.burst(burst_records)

        def with_both() -> Burst:
            with watchers.looking():
                return to_watched.burst(burst_records, watchers.page.pid)

        to_plain.burst(WARM_UP_RECORDS)
        to_watched.burst(WARM_UP_RECORDS)
        while len(losses.throughput) < min_pairs or (
            len(losses.throughput) < max_pairs and losses.half_width > 100 * CLOSE_ENOUGH
        ):
            if len(losses.throughput) % 2:
                looked_at, alone = with_both(), without()
            else:
                alone, looked_at = without(), with_both()
            losses.throughput.append(100 * (1 - looked_at.records_per_s / alone.records_per_s))
            losses.cpu.append(100 * (looked_at.cpu_us / alone.cpu_us - 1))
            tell(
                f"pair {len(losses.throughput)}: {alone.records_per_s:,.0f} records/s without, "
                f"{looked_at.records_per_s:,.0f} with metrics and page; {alone.cpu_us:.1f} and {looked_at.cpu_us:.1f} us "
                f"of CPU a record; median loss {median(losses.throughput):.1f} % +- {losses.half_width:.1f}"
            )
    assert watchers.scrapes > 0
    assert watchers.events > 0
    return losses


def half_width_of_median(values: Sequence[float]) -> float:
    """Half of the interval in which the median lies with 95 %: between two order statistics, whatever the distribution."""
    ordered, count = sorted(values), len(values)
    reach = 0.98 * sqrt(count)
    low, high = max(0, int(count / 2 - reach)), min(count - 1, int(count / 2 + reach))
    return (ordered[high] - ordered[low]) / 2


class _Sender:
    """A producer to one cluster, that stays open."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._topic = cluster.create_topic(partitions=PARTITIONS)
        self._producer = Producer(cluster.bootstrap, linger_ms=5)
        self._pids = [cluster.pid(node) for node in cluster.nodes]

    def __enter__(self) -> _Sender:
        run_in_background(self._producer.start())
        return self

    def __exit__(self, *_: object) -> None:
        run_in_background(self._producer.close())

    def burst(self, records: int, *others: int) -> Burst:
        """`others`: pids of processes whose CPU counts too."""
        pids = [*self._pids, *others, os.getpid()]
        cpu_before_s, began = cpu_s(pids), time.perf_counter()
        run_in_background(self._send(records))
        took_s, took_cpu_s = time.perf_counter() - began, cpu_s(pids) - cpu_before_s
        return Burst(records / took_s, took_cpu_s / records * 1e6)

    async def _send(self, records: int) -> None:
        for number in range(records):
            await self._producer.send(self._topic, RECORD, partition=number % PARTITIONS)
        await self._producer.flush()


class _Watchers:
    """A page that is open on the cluster, and an onlooker, who reads it and scrapes every process's metrics."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.scrapes = 0  # known at the end, as `events`
        self.events = 0
        metrics = [cluster.member(node).metrics_address for node in cluster.nodes]
        ui = ["fencepost_cli", "ui", "--no-browser", "--data-dir", str(cluster.directory)]
        self._server = _run_module(*ui)
        assert self._server.stdout is not None
        found = re.search(r"http://(\S+)/", self._server.stdout.readline())
        assert found is not None
        self._onlooker = _run_module("fencepost_cli.onlooker", found.group(1), *metrics)
        self.page = psutil.Process(self._server.pid)
        self._processes = [self.page, psutil.Process(self._onlooker.pid)]

    def __enter__(self) -> _Watchers:
        time.sleep(CATCH_UP_S)  # the page has seen every broker
        for process in self._processes:
            process.suspend()
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.resume()
        said, _ = self._onlooker.communicate("end\n", _TIMEOUT_S)
        self.scrapes, self.events = map(int, said.split())
        self.page.send_signal(signal.SIGINT)
        self._server.wait(_TIMEOUT_S)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """They look meanwhile, and only then."""
        for process in self._processes:
            process.resume()
        time.sleep(CATCH_UP_S)
        try:
            yield
        finally:
            for process in self._processes:
                process.suspend()


def _run_module(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
