"""Clusters of real processes for integration tests: each test has its own, in its own folder, on its own ports.

def test_something(run, cluster_factory):
    async def scenario():
        async with cluster_factory(brokers=3) as cluster:
            …
    run(scenario())
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fencepost_testing.local_cluster import AsyncLocalCluster
from tests import asynchronous

T = TypeVar("T")
ClusterFactory = Callable[..., AsyncLocalCluster]


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, T]], T]:
    """Runs a coroutine with a deadline."""
    return asynchronous.run


_CLUSTERS = pytest.StashKey[list[AsyncLocalCluster]]()
_LOG_TAIL_CHARACTERS = 4000


@pytest.fixture
def cluster_factory(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ClusterFactory]:
    """Makes clusters (`AsyncLocalCluster.create`'s options) under tmp_path; kills what a test leaves running.

    Whatever is done to them, no process of a cluster may log an error that no one foresaw: a test fails for a traceback.
    """
    made: list[AsyncLocalCluster] = []
    request.node.stash[_CLUSTERS] = made

    def make(*, name: str = "cluster", **options: Any) -> AsyncLocalCluster:
        cluster = AsyncLocalCluster.create(tmp_path / name, **options)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.close()
        for member in cluster.members.values():
            if member.log_file.exists():
                text = member.log_file.read_text(errors="replace")
                assert "Traceback" not in text, f"{member.log_file}: {text[text.index('Traceback') - 500 :][:4000]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test's report holds the ends of its processes' logs."""
    report = yield
    if report.failed and call.when == "call":
        for cluster in item.stash.get(_CLUSTERS, []):
            for member in cluster.members.values():
                if member.log_file.exists():
                    text = member.log_file.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]
                    report.sections.append((f"log of {member.directory.name}", text))
    return report
