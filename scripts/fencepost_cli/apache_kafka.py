"""Apache Kafka on this machine, to be measured beside Fencepost: one controller and some brokers, each a JVM of its own.

It is assembled once from Kafka's own artifacts, which Maven fetches by their names, into a folder of the user's cache. A JDK
and Maven have to be there. Settings are Kafka's defaults, and those of its own start scripts for a JVM, but for what three
brokers on one machine need: addresses, folders, and the replication of internal topics.

Every process is one of this run: it is killed at the end, by a watchdog where this process is killed. Its data are in the
folder that is given, and gone with it.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from fencepost_testing.failures import CommandFailed
from fencepost_testing.member import log_tail
from fencepost_testing.ports import LOOPBACK, PortReservation, reserve_ports
from fencepost_testing.processes import ProcessRef, Watchdog, spawn_command
from fencepost_testing.waiting import until

VERSION = "4.3.1"
NAME = f"Apache Kafka {VERSION}"
LEAST_JAVA = 17
CONTROLLER = 100  # its node id
HEAP = "1G"  # as Kafka's own start script
ASSEMBLY_TIMEOUT_S = 600.0  # Maven fetches some 150 MB
FORMAT_TIMEOUT_S = 180.0
READY_TIMEOUT_S = 180.0
GONE_TIMEOUT_S = 30.0
_POLL_S = 0.02
_SHOWN = 2_000  # characters of what a tool that failed has said

# As Kafka's start scripts set them.
_JVM = [
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-Djava.awt.headless=true",
]

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>fencepost</groupId><artifactId>apache-kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.25.4</version>
    </dependency>
  </dependencies>
</project>
"""

_LOGGING = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR">
  <Appenders>
    <Console name="out" target="SYSTEM_OUT"><PatternLayout pattern="[%d] %p %m (%c)%n"/></Console>
  </Appenders>
  <Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""


# ---- Assembling ----


def assembled() -> Path:
    """The folder of Kafka's jars; assembled first where it is not there. Takes a minute then.

    Raises CommandFailed where a JDK or Maven is missing, or Maven fails.
    """
    _require_tools()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fencepost"
    folder = cache / f"apache-kafka-{VERSION}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="assembling-", dir=cache) as temporary:
        work = Path(temporary)
        (work / "pom.xml").write_text(_POM)
        arguments = ["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=jars"]
        _run(["mvn", *arguments], work, ASSEMBLY_TIMEOUT_S)
        if not list((work / "jars").glob("kafka_2.13-*.jar")):
            raise CommandFailed(f"Maven has not brought {NAME}: {work / 'jars'} has no kafka_2.13")
        (work / "jars").rename(folder)  # whole, or not there
    return folder


def _require_tools() -> None:
    needs = f"--peer kafka needs a JDK ({LEAST_JAVA} or newer) and Maven"
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise CommandFailed(f"{needs}: there is no {tool} on the PATH")
    told = _run(["java", "-version"], Path.cwd(), FORMAT_TIMEOUT_S)
    if java_version(told) < LEAST_JAVA:
        raise CommandFailed(f"{needs}; this one says {told.splitlines()[0] if told else 'nothing'}")


def java_version(told: str) -> int:
    """The feature release in what `java -version` writes; 0: there is none. Up to 8 they are called 1.8."""
    found = re.search(r'version "(?:1\.)?(\d+)', told)
    return int(found[1]) if found else 0


def _run(command: list[str], folder: Path, timeout_s: float) -> str:
    """What it writes. Raises CommandFailed."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{command[0]} has not ended within {timeout_s:g} s: {' '.join(command)}") from None
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)} failed ({done.returncode}): {done.stdout[-_SHOWN:].strip()}")
    return done.stdout


# ---- The cluster ----


class ApacheKafka:
    """A cluster, as the benchmark uses it (`kafka_bench.BenchCluster`). Made once; `close` ends it."""

    def __init__(self, jars: Path, folder: Path, brokers: int) -> None:
        self.broker_ids = list(range(1, brokers + 1))
        self._jars = jars
        self._folder = folder
        self._cluster_id = "F" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
        self._reservations: dict[int, PortReservation] = {}
        self._processes: dict[int, tuple[ProcessRef, subprocess.Popen[bytes]]] = {}
        self._watchdog: Watchdog | None = None

    @property
    def kafka_bootstrap(self) -> str:
        return ",".join(self._address(broker) for broker in self.broker_ids)

    async def up(self) -> None:
        nodes = [CONTROLLER, *self.broker_ids]
        self._reservations = dict(zip(nodes, reserve_ports(len(nodes), None), strict=True))
        self._watchdog = Watchdog()
        self._folder.mkdir(parents=True)
        (self._folder / "log4j2.xml").write_text(_LOGGING)
        for node in nodes:
            self._folder_of(node).mkdir()
            self._config_of(node).write_text(properties(self._settings(node)))
        await asyncio.gather(*(asyncio.to_thread(self._format, node) for node in nodes))
        for node in nodes:
            self._spawn(node)
        for node in nodes:
            await self._wait_listening(node)

    def pid(self, node: int) -> int:
        return self._processes[node][0].pid

    async def kill(self, node: int) -> None:
        if not self._processes[node][0].send(signal.SIGKILL):
            raise CommandFailed(f"node {node} of {NAME} is not running")

    async def restart(self, node: int) -> None:
        """Of one that was killed."""
        child = self._processes[node][1]
        await until(lambda: child.poll() is not None, f"node {node} of {NAME} ends", GONE_TIMEOUT_S)
        self._spawn(node)
        await self._wait_listening(node)

    def close(self) -> None:
        for process, child in self._processes.values():
            process.send(signal.SIGKILL)
            child.wait()
        if self._watchdog is not None:
            self._watchdog.close()
        for reservation in self._reservations.values():
            reservation.release()

    # ---- One node ----

    def _address(self, node: int) -> str:
        return f"{LOOPBACK}:{self._reservations[node].port}"

    def _folder_of(self, node: int) -> Path:
        return self._folder / f"node-{node}"

    def _config_of(self, node: int) -> Path:
        return self._folder_of(node) / "server.properties"

    def _log_of(self, node: int) -> Path:
        return self._folder_of(node) / "server.log"

    def _settings(self, node: int) -> dict[str, str]:
        listener = "CONTROLLER" if node == CONTROLLER else "PLAINTEXT"
        return {
            "node.id": str(node),
            "process.roles": "controller" if node == CONTROLLER else "broker",
            "controller.quorum.bootstrap.servers": self._address(CONTROLLER),
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{listener}://{self._address(node)}",
            "advertised.listeners": f"{listener}://{self._address(node)}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": str(self._folder_of(node) / "log"),
            "offsets.topic.replication.factor": str(len(self.broker_ids)),
        }

    def _java(self, *arguments: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self._folder / 'log4j2.xml'}"
        return ["java", *_JVM, logging, "-cp", f"{self._jars}/*", *arguments]

    def _format(self, node: int) -> None:
        quorum = "--standalone" if node == CONTROLLER else "--no-initial-controllers"
        config = str(self._config_of(node))
        arguments = ["kafka.tools.StorageTool", "format", "-t", self._cluster_id, quorum, "-c", config]
        _run(self._java(*arguments), self._folder_of(node), FORMAT_TIMEOUT_S)

    def _spawn(self, node: int) -> None:
        config = self._config_of(node)
        command = self._java(f"-Xms{HEAP}", f"-Xmx{HEAP}", "kafka.Kafka")
        self._processes[node] = spawn_command([*command, str(config)], config, self._log_of(node))
        assert self._watchdog is not None
        self._watchdog.watch(self._processes[node][0])

    async def _wait_listening(self, node: int) -> None:
        port = self._reservations[node].port

        async def listens() -> bool:
            if self._processes[node][1].poll() is not None:
                raise CommandFailed(f"node {node} of {NAME} ended; its log:\n{log_tail(self._log_of(node))}")
            try:
                _, writer = await asyncio.open_connection(LOOPBACK, port)
            except OSError:
                return False
            writer.close()
            return True

        await until(listens, f"node {node} of {NAME} listens on port {port}", READY_TIMEOUT_S, poll_s=_POLL_S)


def properties(settings: Mapping[str, str]) -> str:
    """A Java properties file, in which a backslash escapes."""
    return "".join(f"{key}={value.replace(chr(92), chr(92) * 2)}\n" for key, value in settings.items())
