"""What the testing kit costs: the times and the memory that a test suite sees, on clusters of three brokers.

Each first use is measured in a Python of its own, from the first import of the package to a topic that can be used.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import psutil

from fencepost_cli.watched_bench import BURST_RECORDS, MAX_PAIRS, MIN_PAIRS, measure_watched
from fencepost_testing.background_loop import run_in_background
from fencepost_testing.forking import fork_server
from fencepost_testing.local_cluster import LocalCluster
from fencepost_testing.processes import import_path
from fencepost_testing.shared_cluster import renew

FIRST_USES = 5
TURNS = 20
KILLS = 10
PARTITIONS = 3
REST_S = 2.0  # before memory is measured
_MEGABYTE = 1_000_000
_STEP_TIMEOUT_S = 60

# What the fixture does at its first use; the last word of its output is the time of it.
_FIRST_USE = """
import time
began = time.perf_counter()
from fencepost_testing.forking import fork_server
fork_server()
from fencepost_testing.local_cluster import LocalCluster
with LocalCluster(brokers=3) as cluster:
    cluster.create_topic(partitions=3)
    print(time.perf_counter() - began)
"""


@dataclass(slots=True)
class Figure:
    """One row: what was measured, and the goal of issue 9 that it is held against."""

    name: str
    unit: str
    goal: float
    values: list[float] = field(default_factory=list)
    spread: float | None = None  # the median lies within so much of what it seems, with 95 %

    def __str__(self) -> str:
        spread = f" ± {self.spread:.2g}" if self.spread is not None else ""
        return f"{median(self.values):.3g}{spread} {self.unit} (worst {max(self.values):.3g}; goal ≤ {self.goal:g})"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "values": [round(value, 4) for value in self.values]}


def measure_testing(
    tell: Callable[[str], object],
    *,
    first_uses: int = FIRST_USES,
    turns: int = TURNS,
    kills: int = KILLS,
    pairs: tuple[int, int] = (MIN_PAIRS, MAX_PAIRS),
    burst_records: int = BURST_RECORDS,
) -> list[Figure]:
    """All figures, one after another. `pairs`: at least and at most, of bursts with and without metrics and page."""
    first = Figure("first use of a cluster to a usable topic", "s", 1.2)
    turn = Figure("a test's set-up and clean-up: take the cluster; heal and empty it", "ms", 50)
    after_kill = Figure("clean-up after a test that killed a broker: it is started again", "ms", 500)
    leader = Figure("kill to the new leader, as the API tells it", "ms", 100)
    memory = Figure("memory of controller, three brokers and fork server at rest (PSS)", "MB", 220)
    for number in range(first_uses):
        tell(f"first use {number + 1} of {first_uses}")
        first.values.append(_first_use())
    with LocalCluster(brokers=3) as cluster:
        time.sleep(REST_S)
        memory.values.append(_memory_mb(cluster))
        for _ in range(turns):
            cluster.create_topic(partitions=PARTITIONS)
            turn.values.append(_ms(lambda: run_in_background(renew(cluster.aio))))
        tell(f"{turns} turns of tests")
        for number in range(kills):
            topic = cluster.create_topic(partitions=PARTITIONS)
            cluster.wait_in_sync(topic)
            before = cluster.leader(topic, 0)

            def kill_and_look(before: int = before, topic: str = topic) -> None:
                cluster.kill(before)
                assert cluster.leader(topic, 0) != before

            leader.values.append(_ms(kill_and_look))
            tell(f"kill {number + 1} of {kills}: {leader.values[-1]:.0f} ms")
            after_kill.values.append(_ms(lambda: run_in_background(renew(cluster.aio))))
    tell("bursts with and without metrics and page")
    losses = measure_watched(tell, min_pairs=pairs[0], max_pairs=pairs[1], burst_records=burst_records)
    throughput = Figure("throughput lost by metrics (a scrape a second) and an open page", "%", 3, losses.throughput)
    throughput.spread = losses.half_width
    cpu = Figure("CPU of a record, of all processes, added by them", "%", 3, losses.cpu)
    return [first, turn, after_kill, leader, memory, throughput, cpu]


def _first_use() -> float:
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_USE],
        capture_output=True,
        text=True,
        timeout=_STEP_TIMEOUT_S,
        check=True,
        env={"PYTHONPATH": import_path()},
    )
    return float(done.stdout)


def _ms(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


def _memory_mb(cluster: LocalCluster) -> float:
    """Proportional: what processes share is divided among them, so that the sum is what they take from the machine."""
    server = fork_server()
    pids: Sequence[int] = [*(cluster.pid(node) for node in cluster.nodes), *([server.pid] if server else [])]
    return sum(psutil.Process(pid).memory_full_info().pss for pid in pids) / _MEGABYTE
