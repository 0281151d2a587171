"""Fixtures for pytest: real clusters for tests, shared or of a test's own.

    def test_orders_survive_a_leader_kill(fencepost):
        topic = fencepost.create_topic(partitions=3)
        ...
        fencepost.kill((topic, 0))

- `fencepost`: a `LocalCluster` that the tests of a session share (of a worker's, under pytest-xdist); after each test it is
  healed and emptied.
- `fencepost_cluster`: one for this test alone.
- `fencepost_cluster_factory(brokers=3, …)`: as many as a test wants.
- `fencepost_watch(cluster)`: has a cluster that the test made itself judged and reported like these.

`@pytest.mark.fencepost(brokers=5, flush_always=True, …)` says what the first two are to be like: how many brokers, and
any setting of docs/CONFIGURATION.md. Tests with equal marks share a cluster.

A test fails where a process of its cluster ended by itself, or logged a traceback or a broken invariant. The report of a
failed test has the timeline of what was done to the cluster, and the ends of the logs.

Nothing is imported before a test asks for a cluster: pytest loads this in every project of the environment.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fencepost_testing.cluster_folder import ClusterFolder
    from fencepost_testing.cluster_settings import ClusterSettings
    from fencepost_testing.cluster_watch import ClusterWatch
    from fencepost_testing.local_cluster import LocalCluster

MARKER = "fencepost"
MAX_SHARED = 2  # clusters that are kept for tests to come
LOG_LINES = 40
_STATE_FILE = "cluster.json"  # as `cluster_file` has it

_MAKER = pytest.StashKey["ClusterMaker"]()
_SHARED = pytest.StashKey["SharedClusters"]()
_WATCHES = pytest.StashKey[list["ClusterWatch"]]()


# ---- What can be set ----


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fencepost", "clusters of Fencepost")
    group.addoption(
        "--fencepost-brokers", type=int, default=None, metavar="N", help="brokers of a cluster (default: 3)"
    )
    group.addoption(
        "--fencepost-data-dir",
        default=None,
        metavar="DIR",
        help="keep the clusters' data and logs there (default: temporary folders, removed at the end)",
    )
    group.addoption(
        "--fencepost-log-lines",
        type=int,
        default=None,
        metavar="N",
        help=f"lines of each process's log in a failed test's report (default: {LOG_LINES})",
    )
    parser.addini("fencepost_brokers", "brokers of a cluster", default="3")
    parser.addini(
        "fencepost_settings", "settings of every cluster, one 'name = value' a line", type="linelist", default=[]
    )
    parser.addini(
        "fencepost_log_lines", "lines of each process's log in a failed test's report", default=str(LOG_LINES)
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(brokers=3, controllers=1, **settings): what the test's cluster is to be like; settings by their names in "
        "docs/CONFIGURATION.md, of brokers, of the controller, or of topics that create_topic makes",
    )
    _number(config, "brokers", 1)
    _number(config, "log_lines", 0)
    _settle_data_dir(config)


def _settle_data_dir(config: pytest.Config) -> None:
    """From where pytest was started, whatever tests do later; workers of pytest-xdist are given it as it is then.

    Raises UsageError for one that cannot be used.
    """
    given: str | None = config.getoption("fencepost_data_dir")
    if given is None or hasattr(config, "workerinput"):
        return
    root = config.invocation_params.dir / given
    taken = next((file for held in ("", "cluster-*/", "*/cluster-*/") for file in root.glob(held + _STATE_FILE)), None)
    if taken is not None:
        raise pytest.UsageError(
            f"--fencepost-data-dir {given}: {taken.parent} holds a cluster already; name a folder without one"
        )
    if not _may_hold_folders(root):
        raise pytest.UsageError(f"--fencepost-data-dir {given}: {root} is no folder, and cannot be made one")
    config.option.fencepost_data_dir = str(root)


def _may_hold_folders(path: Path) -> bool:
    """Whether it is a folder, or would be made in one."""
    there = next(each for each in (path, *path.parents) if each.exists())
    return there.is_dir()


def _number(config: pytest.Config, name: str, least: int) -> int:
    """As the command line says, or the ini file. Raises UsageError, at pytest's start."""
    given = config.getoption(f"fencepost_{name}")
    text = str(config.getini(f"fencepost_{name}") if given is None else given)
    where = f"fencepost_{name} in the ini file" if given is None else f"--fencepost-{name.replace('_', '-')}"
    if not text.isdecimal() or int(text) < least:
        raise pytest.UsageError(f"{where} is {text!r}: must be a whole number, at least {least}")
    return int(text)


def _settings(config: pytest.Config, named: Mapping[str, object]) -> ClusterSettings:
    """As they are named, and for the rest as the command line and the ini file say. Raises ClusterError."""
    from fencepost_testing.cluster_settings import ClusterSettings, parse_settings

    common = {"brokers": _number(config, "brokers", 1), **parse_settings(config.getini("fencepost_settings"))}
    return ClusterSettings.of({**common, **named})


def _marked(request: pytest.FixtureRequest) -> ClusterSettings:
    """What the test's marks say, the nearest first. Raises ClusterError."""
    from fencepost_testing.member import ClusterError

    named: dict[str, object] = {}
    for mark in reversed(list(request.node.iter_markers(MARKER))):
        if mark.args:
            raise ClusterError(f"the marker takes settings by name, not {mark.args[0]!r}")
        named |= mark.kwargs
    return _settings(request.config, named)


@contextmanager
def _told_without_traceback() -> Iterator[None]:
    """The report of a cluster that cannot be, or start, has the reason, and no line of the plugin's own."""
    from fencepost_testing.failures import CommandFailed

    try:
        yield
    except CommandFailed as error:
        raise pytest.fail.Exception(f"{MARKER}: {error}", pytrace=False) from None


# ---- Clusters ----


class ClusterMaker:
    """Makes the clusters of one session: where the command line says, in numbered folders, else in temporary ones."""

    def __init__(self, config: pytest.Config) -> None:
        self._root: str | None = config.getoption("fencepost_data_dir")
        self._worker = getattr(config, "workerinput", {}).get("workerid", "")
        self._made = 0

    def make(self, settings: ClusterSettings, **options: Any) -> LocalCluster:
        """Not started yet."""
        from fencepost_testing.local_cluster import LocalCluster

        numbered = self._root is not None and "directory" not in options
        if self._root is not None and numbered:
            options["directory"] = Path(self._root, self._worker, f"cluster-{self._made + 1}")
        cluster = LocalCluster(
            brokers=settings.brokers,
            controllers=settings.controllers,
            broker_overrides=dict(settings.broker),
            controller_overrides=dict(settings.controller),
            **options,
        )
        self._made += numbered
        cluster.topic_defaults = dict(settings.topic)
        return cluster


class SharedClusters:
    """Of one session: one cluster for each kind that tests ask for, as many as may run at a time."""

    def __init__(self, maker: ClusterMaker) -> None:
        self._maker = maker
        self._clusters: dict[ClusterSettings, LocalCluster] = {}  # the one used last at the end

    def take(self, settings: ClusterSettings) -> LocalCluster:
        """One that runs, and is empty."""
        cluster = self._clusters.pop(settings, None)
        if cluster is None:
            while len(self._clusters) >= MAX_SHARED:
                self._clusters.pop(next(iter(self._clusters))).close()
            cluster = self._maker.make(settings)
            try:
                cluster.up()
            except BaseException:
                cluster.close()
                raise
        self._clusters[settings] = cluster
        return cluster

    def give_back(self, settings: ClusterSettings, cluster: LocalCluster, *, usable: bool) -> None:
        """Healed and emptied for the next test; ended where it is not `usable`."""
        from fencepost_testing.background_loop import run_in_background
        from fencepost_testing.shared_cluster import renew

        if usable:
            try:
                run_in_background(renew(cluster.aio))
            except BaseException:
                self._end(settings)
                raise
        else:
            self._end(settings)

    def _end(self, settings: ClusterSettings) -> None:
        self._clusters.pop(settings).close()

    def close(self) -> None:
        for cluster in self._clusters.values():
            cluster.close()
        self._clusters.clear()


def _load_early() -> None:
    """Have the fork server load the brokers' code, while this process loads its own."""
    from fencepost_testing.forking import fork_server

    fork_server()


def _maker(config: pytest.Config) -> ClusterMaker:
    if _MAKER not in config.stash:
        config.stash[_MAKER] = ClusterMaker(config)
    return config.stash[_MAKER]


def _shared(config: pytest.Config) -> SharedClusters:
    if _SHARED not in config.stash:
        config.stash[_SHARED] = SharedClusters(_maker(config))
    return config.stash[_SHARED]


@pytest.fixture
def fencepost_watch(request: pytest.FixtureRequest) -> Callable[..., ClusterWatch]:
    """`fencepost_watch(cluster)`: have a cluster that the test makes itself judged and reported like those of the fixtures.

    `ends=False`: that a process ends by itself is nothing wrong there.
    """

    def watch(cluster: ClusterFolder, *, ends: bool = True) -> ClusterWatch:
        from fencepost_testing.cluster_watch import ClusterWatch

        watch = ClusterWatch(cluster, ends=ends)
        request.node.stash.setdefault(_WATCHES, []).append(watch)
        return watch

    return watch


Watch = Callable[["ClusterFolder"], "ClusterWatch"]


@pytest.fixture
def fencepost(request: pytest.FixtureRequest, fencepost_watch: Watch) -> Iterator[LocalCluster]:
    """A cluster that runs and is empty, shared with other tests; `@pytest.mark.fencepost(…)` says what it is like."""
    _load_early()
    shared = _shared(request.config)
    with _told_without_traceback():
        settings = _marked(request)
        cluster = shared.take(settings)
    watch = fencepost_watch(cluster)
    try:
        yield cluster
    finally:
        shared.give_back(settings, cluster, usable=not watch.problems())


@pytest.fixture
def fencepost_cluster(request: pytest.FixtureRequest, fencepost_watch: Watch) -> Iterator[LocalCluster]:
    """A cluster of this test's own, that runs; `@pytest.mark.fencepost(…)` says what it is like."""
    _load_early()
    with _told_without_traceback():
        cluster = _maker(request.config).make(_marked(request))
    with closing(cluster):
        fencepost_watch(cluster)
        with _told_without_traceback():
            cluster.up()
        yield cluster


@pytest.fixture
def fencepost_cluster_factory(
    request: pytest.FixtureRequest, fencepost_watch: Watch
) -> Iterator[Callable[..., LocalCluster]]:
    """Makes clusters that run: `fencepost_cluster_factory(brokers=1, directory=…, flush_always=True)`.

    `up=False`: it is not started. `directory`: of its data, which stay there; None: as the command line says, else a
    temporary one. Everything else is a setting as the marker has them; what is not given is as the command line and the ini
    file say, and no mark. All end with the test.
    """
    _load_early()
    maker = _maker(request.config)
    made: list[LocalCluster] = []

    def make(*, up: bool = True, directory: str | Path | None = None, **settings: object) -> LocalCluster:
        options = {} if directory is None else {"directory": directory}
        cluster = maker.make(_settings(request.config, settings), **options)
        made.append(cluster)
        fencepost_watch(cluster)
        if up:
            cluster.up()
        return cluster

    try:
        yield make
    finally:
        for cluster in made:
            cluster.close()


# ---- Verdicts and reports ----


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test that has passed fails where something went wrong in its clusters that it did not do itself."""
    result = yield
    problems = [problem for watch in item.stash.get(_WATCHES, []) for problem in watch.problems()]
    if problems:
        pytest.fail("\n\n".join(problems), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test's report has what was done to its clusters, and the ends of their logs."""
    report = yield
    if report.failed:
        lines = _number(item.config, "log_lines", 0)
        for watch in item.stash.get(_WATCHES, []):
            if timeline := watch.timeline():
                report.sections.append(("fencepost timeline", "\n".join(map(str, timeline))))
            for name, end in watch.log_ends(lines).items() if lines else ():
                report.sections.append((f"fencepost log of {name}", end))
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    """The session has ended, whatever ended it; where this process is killed, the clusters' watchdogs end them."""
    shared = config.stash.get(_SHARED, None)
    if shared is not None:
        shared.close()
