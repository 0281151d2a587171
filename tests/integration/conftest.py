"""Clusters of real processes for integration tests.

Most share one, which is healed and emptied after each (the kit's own fixture `fencepost`, with an asynchronous face):

    @asynchronous
    async def test_something(cluster: AsyncLocalCluster) -> None: …

One that harms its cluster for good, or needs odd options, has its own, in its own folder, on its own ports:

    async def test_something(cluster_factory: ClusterFactory) -> None:
        async with cluster_factory(brokers=3, …) as cluster: …
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fencepost_testing.cluster_watch import ClusterWatch
from fencepost_testing.local_cluster import AsyncLocalCluster, LocalCluster
from tests import asynchronous

T = TypeVar("T")
ClusterFactory = Callable[..., AsyncLocalCluster]


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, T]], T]:
    """Runs a coroutine with a deadline."""
    return asynchronous.run


@pytest.fixture
def cluster(fencepost: LocalCluster) -> AsyncLocalCluster:
    """Three brokers, or what `@pytest.mark.fencepost(…)` says; shared."""
    return fencepost.aio


@pytest.fixture
def cluster_factory(tmp_path: Path, fencepost_watch: Callable[..., ClusterWatch]) -> Iterator[ClusterFactory]:
    """Makes clusters (`AsyncLocalCluster.create`'s options) under tmp_path; kills what a test leaves running.

    Whatever is done to them, no process of a cluster may log an error that no one foresaw: a test fails for a traceback, and
    the report of a failed one has the ends of the logs (`fencepost_testing.pytest_plugin`).
    """
    made: list[AsyncLocalCluster] = []

    def make(*, name: str = "cluster", **options: Any) -> AsyncLocalCluster:
        cluster = AsyncLocalCluster(tmp_path / name, **options)
        made.append(cluster)
        fencepost_watch(cluster, ends=False)  # some are ended by their pids, or end as a test wants it
        return cluster

    yield make
    for cluster in made:
        cluster.close()
