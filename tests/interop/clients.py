"""The clients: what each needs, how its program is built and called, and what it can do."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fencepost_testing.failures import CommandFailed
from tests.interop.python import kcat

HERE = Path(__file__).parent
BUILT = HERE.parent.parent / ".fencepost" / "interop"  # what the builders leave; not part of the project
BUILD_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Client:
    """One client. `needs` are commands that must be there; without one of them the client is skipped."""

    name: str
    language: str
    command: tuple[str, ...]  # of its program
    version: Callable[[], str]
    needs: tuple[str, ...] = ()  # commands
    build: Callable[[], None] = field(default=lambda: None)
    idempotent: bool = True
    administers: bool = True
    reads_without_group: bool = True
    tells_assignment: bool = True  # when it reads from a committed offset again

    def missing(self) -> list[str]:
        """The commands that this machine lacks; `a|b` needs one of the two."""
        return [command for command in self.needs if not any(map(shutil.which, command.split("|")))]


def _python(name: str, package: str, module: str) -> Client:
    command = (sys.executable, "-m", f"tests.interop.python.{module}")
    return Client(name, "Python", command, lambda: importlib.metadata.version(package))


def run_command(command: list[str], folder: Path) -> None:
    """Raises CommandFailed with the end of the output."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        said = (error.stdout + error.stderr)[-2_000:]
        raise CommandFailed(f"{' '.join(command)} in {folder} failed:\n{said}") from error


def _copied(language: str) -> Path:
    """The sources of a language's programs, where they are built: beside nothing that is under version control."""
    target = BUILT / language
    shutil.copytree(
        HERE / language, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "target")
    )
    return target


def _build_java() -> None:
    run_command(["mvn", "-q", "-B", "package"], _copied("java"))


def _build_go() -> None:
    run_command(["go", "build", "-o", "bin/", "./franz", "./sarama", "./segmentio"], _copied("go"))


def _build_node() -> None:
    run_command(["npm", "ci", "--no-audit", "--no-fund"], _copied("node"))


def _java_version() -> str:
    pom = (HERE / "java" / "pom.xml").read_text()
    found = re.search(r"<artifactId>kafka-clients</artifactId>\s*<version>(.*?)</version>", pom)
    return found[1] if found else "?"


def _go(name: str, program: str, module: str, *, idempotent: bool = True, tells_assignment: bool = True) -> Client:
    def version() -> str:
        found = re.search(rf"{re.escape(module)} v(\S+)", (HERE / "go" / "go.mod").read_text())
        return found[1] if found else "?"

    command = (str(BUILT / "go" / "bin" / program),)
    return Client(
        name, "Go", command, version, ("go",), _build_go, idempotent=idempotent, tells_assignment=tells_assignment
    )


def _node(name: str, program: str, package: str, *, tells_assignment: bool = True) -> Client:
    def version() -> str:
        said = json.loads((HERE / "node" / "package.json").read_text())
        return str(said["dependencies"][package])

    command = ("node", str(BUILT / "node" / f"{program}.mjs"))
    return Client(
        name,
        "Node",
        command,
        version,
        needs=("node", "npm"),
        build=_build_node,
        reads_without_group=False,
        tells_assignment=tells_assignment,
    )


_JAVA_PATH = f"{BUILT / 'java' / 'target' / 'classes'}:{BUILT / 'java' / 'target' / 'lib'}/*"

CLIENTS = {
    client.name: client
    for client in (
        _python("confluent-kafka", "confluent-kafka", "confluent"),
        _python("kafka-python", "kafka-python", "kafka_python"),
        _python("aiokafka", "aiokafka", "aiokafka_client"),
        Client(
            "kafka-clients",
            "Java",
            (
                "java",
                "-Xmx256m",
                "-XX:TieredStopAtLevel=1",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
                "-cp",
                _JAVA_PATH,
                "Interop",
            ),
            _java_version,
            needs=("java", "mvn"),
            build=_build_java,
        ),
        _go("franz-go", "franz", "github.com/twmb/franz-go"),
        _go("sarama", "sarama", "github.com/IBM/sarama"),
        _go("kafka-go", "segmentio", "github.com/segmentio/kafka-go", idempotent=False, tells_assignment=False),
        _node("kafkajs", "kafkajs", "kafkajs"),
        _node("@platformatic/kafka", "platformatic", "@platformatic/kafka", tells_assignment=False),
        Client(
            "kcat",
            "C",
            (sys.executable, "-m", "tests.interop.python.kcat"),
            kcat.version,
            needs=("kcat|kafkacat",),
            administers=False,
            tells_assignment=False,
        ),
    )
}
