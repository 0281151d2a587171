"""Apache Kafka as a peer of the benchmark, without a JVM: `java` and `mvn` are small programs of these tests."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from fencepost_cli.apache_kafka import CONTROLLER, LEAST_JAVA, VERSION, ApacheKafka, assembled, java_version, properties
from fencepost_cli.main import app
from fencepost_cli.terminal import EXIT_FAILED, EXIT_USAGE
from fencepost_testing.failures import CommandFailed
from tests.asynchronous import run

JAVA_17 = "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2"
JARS = f"mkdir -p jars && touch jars/kafka_2.13-{VERSION}.jar"

# A server that reads its port from its properties, as Kafka does, and whose formatting does nothing.
NODE = f"""#!{sys.executable}
import re, socket, sys, time
if "kafka.Kafka" in sys.argv:
    listener = re.search(r"^listeners=.*:(\\d+)$", open(sys.argv[-1]).read(), re.M)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", int(listener[1])))
    listening.listen()
    time.sleep(600)
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder of the PATH beside the system's own, and a cache that is empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(script if script.startswith("#!") else f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("told", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime', 17),
        ('java version "1.8.0_401"', 8),
        ('openjdk version "25" 2025-09-16', 25),
        ("no such thing", 0),
    ],
)
def test_the_release_of_a_jdk_is_read(told: str, version: int) -> None:
    assert java_version(told) == version


@pytest.mark.parametrize("missing", ["java", "mvn"])
def test_a_tool_that_is_missing_is_named(tools: Path, missing: str) -> None:
    for name in {"java", "mvn"} - {missing}:
        tool(tools, name, JAVA_17)
    with pytest.raises(CommandFailed, match=f"needs a JDK.* and Maven: there is no {missing} on the PATH"):
        assembled()


def test_a_jdk_that_is_too_old_is_refused_with_what_it_says(tools: Path) -> None:
    tool(tools, "java", "echo 'openjdk version \"11.0.2\"' >&2")
    tool(tools, "mvn", JARS)
    with pytest.raises(CommandFailed, match=rf'{LEAST_JAVA} or newer.*this one says openjdk version "11.0.2"'):
        assembled()


def test_kafka_is_assembled_once(tools: Path, tmp_path: Path) -> None:
    tool(tools, "java", JAVA_17)
    tool(tools, "mvn", f"{JARS}; grep -q {VERSION} pom.xml && echo called >> {tmp_path / 'calls'}")
    jars = assembled()
    assert [jar.name for jar in jars.iterdir()] == [f"kafka_2.13-{VERSION}.jar"]
    assert assembled() == jars
    assert (tmp_path / "calls").read_text() == "called\n"
    assert list(jars.parent.iterdir()) == [jars], "nothing else is left in the cache"


@pytest.mark.parametrize("script", [f"{JARS}; echo 'no network'; exit 1", "echo 'no network'"])
def test_what_maven_did_not_finish_leaves_nothing(tools: Path, tmp_path: Path, script: str) -> None:
    tool(tools, "java", JAVA_17)
    tool(tools, "mvn", script)
    with pytest.raises(CommandFailed, match=r"no network|has not brought"):
        assembled()
    assert not list((tmp_path / "cache/fencepost").iterdir())


def test_a_cluster_starts_loses_a_broker_and_ends(tools: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        tool(tools, "java", NODE)
        cluster = ApacheKafka(tmp_path / "jars", tmp_path / "kafka", brokers=2)
        try:
            await cluster.up()
            pids = [cluster.pid(node) for node in (CONTROLLER, 1, 2)]
            await cluster.kill(2)
            await cluster.restart(2)
            assert cluster.pid(2) != pids[2]
            pids.append(cluster.pid(2))
            config = (tmp_path / "kafka/node-1/server.properties").read_text()
            assert f"listeners=PLAINTEXT://{cluster.kafka_bootstrap.split(',')[0]}\n" in config
        finally:
            cluster.close()
        assert not any(psutil.pid_exists(pid) for pid in pids)

    run(scenario())


def test_a_node_that_ends_at_its_start_is_named_with_its_log(tools: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        tool(tools, "java", 'case "$*" in *kafka.Kafka*) echo "no room for the heap"; exit 1;; esac')
        cluster = ApacheKafka(tmp_path / "jars", tmp_path / "kafka", brokers=1)
        try:
            with pytest.raises(CommandFailed, match=f"node {CONTROLLER} of Apache Kafka .*ended; its log:\n.*no room"):
                await cluster.up()
        finally:
            cluster.close()

    run(scenario())


def test_properties_are_javas() -> None:
    assert properties({"log.dirs": "C:\\data"}) == "log.dirs=C:\\\\data\n"


def test_the_command_says_what_is_missing(tools: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "--peer", "kafka"])
    assert result.exit_code == EXIT_FAILED
    assert "--peer kafka needs a JDK (17 or newer) and Maven: there is no java on the PATH" in result.output


def test_there_is_no_other_peer(tools: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "--peer", "etcd"])
    assert result.exit_code == EXIT_USAGE
