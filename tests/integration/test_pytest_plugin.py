"""The pytest plugin as its users run it: in an environment with nothing but the wheel, its `testing` extra and pytest."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fencepost_testing.waiting import until_sync
from tests.integration.installed_wheel import build, environment_of, only

RUN_TIMEOUT_S = 100.0

RunTests = Callable[..., pytest.RunResult]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of that environment."""
    folder = tmp_path_factory.mktemp("installed")
    build(folder)
    wanted = ("fencepost[testing]", "pytest", "pytest-xdist", "anyio", "pytest-asyncio")
    return environment_of(folder, only(folder, "*.whl"), *wanted)


@pytest.fixture
def run_tests(pytester: pytest.Pytester, python: Path, monkeypatch: pytest.MonkeyPatch) -> RunTests:
    """Runs the tests in a source text, with options."""
    for name in ("PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)

    def run(source: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(source)
        return pytester.run(python, "-m", "pytest", "-p", "no:cacheprovider", *options, timeout=RUN_TIMEOUT_S)

    return run


def of_this_test(pytester: pytest.Pytester) -> list[psutil.Process]:
    """Processes of clusters whose owner ran in the test's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(pytester.path) and "fencepost_testing.fork_server" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_tests_share_a_cluster_that_is_healed_and_emptied_between_them(
    run_tests: RunTests, pytester: pytest.Pytester
) -> None:
    result = run_tests(
        """
        import socket, pytest
        seen = []

        def test_first(fencepost):
            topic = fencepost.create_topic("orders", partitions=3)
            seen.append((fencepost.directory, fencepost.kafka_bootstrap))
            fencepost.kill((topic, 0))
            fencepost.pause("controller")

        def test_second(fencepost):
            assert (fencepost.directory, fencepost.kafka_bootstrap) == seen[0]
            assert fencepost.topics() == []
            assert all(fencepost.running(node) and not fencepost.paused(node) for node in fencepost.nodes)
            assert fencepost.create_topic("orders") == "orders"
            fencepost.check_exactly_once("orders")

        @pytest.mark.fencepost(brokers=1, flush_always=True, session_timeout_ms=5000)
        class TestOfAnotherKind:
            def test_other(self, fencepost):
                assert fencepost.broker_ids == [1]
                assert fencepost.topic_defaults == {"flush_always": True}
                assert "session_timeout_ms = 5000" in fencepost.member("controller").config_file.read_text()
                assert fencepost.directory != seen[0][0]

            @pytest.mark.fencepost(brokers=2)
            def test_the_nearest_mark_counts(self, fencepost_cluster, fencepost_cluster_factory):
                assert fencepost_cluster.broker_ids == [1, 2]
                other = fencepost_cluster_factory(brokers=1, up=False)
                assert not other.any_running()

        def test_third(fencepost):
            assert fencepost.directory == seen[0][0]
            fencepost.faults.kill(1)
            fencepost.faults.pause(2)

        def test_fourth(fencepost, fencepost_cluster):
            assert fencepost.directory == seen[0][0]
            assert fencepost.running(1) and not fencepost.paused(2)
            with fencepost_cluster.faults.kill("controller"):
                assert not fencepost_cluster.running("controller")
        """,
        "-q",
    )
    result.assert_outcomes(passed=6)
    assert of_this_test(pytester) == []


def test_what_goes_wrong_in_a_cluster_fails_the_test_that_saw_it_and_is_reported(run_tests: RunTests) -> None:
    result = run_tests(
        """
        import os, signal, pytest

        pytestmark = pytest.mark.fencepost(brokers=1)

        def test_dies(fencepost):
            os.kill(fencepost.pid(1), signal.SIGKILL)
            fencepost.wait_gone(1)

        def test_logs_a_traceback(fencepost):
            with fencepost.member(1).log_file.open("a") as log:
                log.write("Traceback (most recent call last):\\n  File x\\nValueError: seven pints\\n")

        def test_fails_by_itself(fencepost):
            topic = fencepost.create_topic("orders")
            fencepost.faults.drop_answers(api="Produce", topic=topic)
            fencepost.kill(1)
            assert topic == "pints"

        def test_is_well(fencepost):
            assert fencepost.topics() == []
        """,
        "--fencepost-log-lines=7",
    )
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(
        [
            "*broker 1 ended by itself with exit code -9*",
            "*fencepost log of *",
            "*broker 1 logged a traceback:*",
            "*ValueError: seven pints*",
            "*fencepost timeline*",
            "* fault posted: *Produce*",
            "* broker 1 killed",
            "*fencepost log of controller*",
            "*FAILED *test_dies*",
        ]
    )
    assert "INTERNALERROR" not in result.stdout.str()


@pytest.mark.long
def test_settings_that_cannot_be_are_refused_by_name(run_tests: RunTests, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nfencepost_settings =\n    log_level = DEBUG\nfencepost_brokers = 1\n")
    result = run_tests(
        """
        import pytest

        @pytest.mark.fencepost(broker=5)
        def test_unknown(fencepost): ...

        @pytest.mark.fencepost(5)
        def test_without_a_name(fencepost): ...

        @pytest.mark.fencepost(brokers="five")
        def test_of_another_type(fencepost): ...

        @pytest.mark.fencepost(session_timeout_ms=-5)
        def test_impossible(fencepost): ...

        @pytest.mark.fencepost(session_timeout_ms="soon")
        def test_impossible_too(fencepost_cluster): ...

        @pytest.mark.fencepost(brokers=99)
        def test_too_many(fencepost): ...

        @pytest.mark.fencepost(brokers=99)
        def test_too_many_of_its_own(fencepost_cluster): ...

        def test_of_the_ini_file(fencepost, fencepost_cluster_factory):
            for cluster in (fencepost, fencepost_cluster_factory(up=False)):
                assert cluster.broker_ids == [1]
                assert 'log_level = "DEBUG"' in cluster.member(1).config_file.read_text()
            assert fencepost_cluster_factory(up=False, brokers=2).broker_ids == [1, 2]
        """,
        "-q",
    )
    result.assert_outcomes(passed=1, errors=7)
    told = result.stdout.str()
    assert "broker=5: no setting of a cluster is called 'broker'; there are auto_create_topics, brokers," in told
    assert "the marker takes settings by name, not 5" in told
    assert "brokers='five': must be a whole number" in told
    assert "session_timeout_ms" in told.split("test_impossible", 1)[1]
    assert told.count("fencepost: 99 brokers: from 1 to 64 can run on one machine") == 2
    assert "INTERNALERROR" not in told
    assert "pytest_plugin.py" not in told, "no line of the plugin"


@pytest.mark.parametrize(
    ("option", "ini", "told"),
    [
        ("--fencepost-brokers=0", "", "--fencepost-brokers is '0': must be a whole number, at least 1"),
        (
            "-q",
            "fencepost_brokers = two",
            "fencepost_brokers in the ini file is 'two': must be a whole number, at least 1",
        ),
        (
            "-q",
            "fencepost_log_lines = q",
            "fencepost_log_lines in the ini file is 'q': must be a whole number, at least 0",
        ),
    ],
)
def test_options_that_cannot_be_end_pytest_at_its_start(
    run_tests: RunTests, pytester: pytest.Pytester, option: str, ini: str, told: str
) -> None:
    pytester.makeini(f"[pytest]\n{ini}\n")
    result = run_tests("def test_is_not_run(): raise AssertionError", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines == [f"ERROR: {told}", ""]


@pytest.mark.long
def test_workers_have_clusters_of_their_own_beside_asynchronous_tests(run_tests: RunTests) -> None:
    result = run_tests(
        """
        import asyncio, pytest

        pytestmark = pytest.mark.fencepost(brokers=1)

        @pytest.mark.parametrize("number", range(4))
        def test_one_of_many(fencepost, number):
            fencepost.create_topic("orders")  # the same name in two workers

        @pytest.mark.asyncio
        async def test_asynchronous(fencepost):
            topic = await fencepost.aio.create_topic()
            assert fencepost.leader(topic) == await fencepost.aio.leader(topic) == 1

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", ["asyncio"])
        async def test_with_anyio(fencepost):
            await fencepost.aio.kill(1)
            await fencepost.aio.start(1)
            await fencepost.aio.wait_registered()
        """,
        "-q",
        "-n",
        "2",
    )
    result.assert_outcomes(passed=6)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGKILL])
def test_no_process_is_left_when_the_runner_is_ended(
    number: signal.Signals, python: Path, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(
        """
        import time, pathlib

        def test_waits(fencepost):
            pathlib.Path("up").write_text(str(fencepost.directory))
            time.sleep(100)
        """
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONPATH"))}
    runner = subprocess.Popen(
        [python, "-m", "pytest", "-q"], cwd=pytester.path, env=environment, stdout=subprocess.PIPE
    )
    try:
        until_sync((pytester.path / "up").exists, "the test has its cluster", RUN_TIMEOUT_S)
        assert len(of_this_test(pytester)) == 5, "a fork server, a controller and three brokers"
        runner.send_signal(number)
        until_sync(lambda: not of_this_test(pytester), "every process of the cluster has ended", RUN_TIMEOUT_S)
        runner.communicate(timeout=RUN_TIMEOUT_S)
        assert runner.returncode in (pytest.ExitCode.INTERRUPTED, -signal.SIGKILL)
        if number == signal.SIGINT:
            assert not Path((pytester.path / "up").read_text()).exists()
    finally:
        runner.kill()
        runner.communicate(timeout=RUN_TIMEOUT_S)


def test_the_clusters_of_a_run_have_folders_of_their_own_and_a_second_run_is_refused(
    run_tests: RunTests, pytester: pytest.Pytester
) -> None:
    source = """
        import pytest
        pytestmark = pytest.mark.fencepost(brokers=1)

        @pytest.fixture(autouse=True)
        def elsewhere(tmp_path, monkeypatch):
            monkeypatch.chdir(tmp_path)  # the folder is where pytest was started

        def test_shared(fencepost):
            fencepost.create_topic("orders")

        def test_own(fencepost_cluster, fencepost_cluster_factory):
            assert not fencepost_cluster_factory(brokers=1, up=False).any_running()

        def test_own_again(fencepost_cluster): ...
        """
    first = run_tests(source, "-q", "--fencepost-data-dir=kept")
    first.assert_outcomes(passed=3)
    kept = sorted(str(file.parent.relative_to(pytester.path)) for file in pytester.path.glob("**/cluster.json"))
    assert kept == [f"kept/cluster-{number}" for number in (1, 2, 3, 4)]
    second = run_tests(source, "-q", "--fencepost-data-dir=kept")
    assert second.ret == pytest.ExitCode.USAGE_ERROR
    second.stderr.fnmatch_lines(["ERROR: --fencepost-data-dir kept: */kept/cluster-? holds a cluster already; name *"])
    assert not (pytester.path / "kept" / "cluster-5").exists()
    (pytester.path / "file").touch()
    third = run_tests(source, "-q", "--fencepost-data-dir=file/kept")
    assert third.ret == pytest.ExitCode.USAGE_ERROR
    third.stderr.fnmatch_lines(
        ["ERROR: --fencepost-data-dir file/kept: */file/kept is no folder, and cannot be made *"]
    )


def test_a_session_that_uses_no_cluster_imports_nothing_for_one(run_tests: RunTests) -> None:
    result = run_tests(
        """
        import sys

        def test_without():
            loaded = {name.partition(".")[0] for name in sys.modules}
            assert loaded.isdisjoint({"grpc", "psutil", "google", "fencepost_node"})
            assert {name for name in sys.modules if name.startswith("fencepost")} == {
                "fencepost_testing", "fencepost_testing.pytest_plugin"
            }
        """,
        "-q",
    )
    result.assert_outcomes(passed=1)
