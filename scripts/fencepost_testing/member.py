"""One process of a local cluster: its folder, its port, whether it runs and is ready, and waiting for that."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fencepost_testing.failures import CommandFailed
from fencepost_testing.forking import ForkedChild
from fencepost_testing.ports import LOOPBACK
from fencepost_testing.processes import NetworkPlace, ProcessRef
from fencepost_testing.waiting import until

Node = int | str  # a broker's id; "controller", or "controller-1" and so on of several; "etcd-1" and so on
Setting = str | int | float | bool
Settings = Mapping[str, Setting]

CONTROLLER: Final = "controller"  # where there is only one
ACTIVE_CONTROLLER: Final = "controller:active"
ETCD: Final = "etcd"
ETCD_LEADER: Final = "etcd:leader"
LEADER_PREFIX: Final = "leader:"
TARGETS: Final = (
    f"a broker's id, '{CONTROLLER}' or '{LEADER_PREFIX}<topic>-<partition>'; of a cluster with several controllers: "
    f"'{CONTROLLER}-<n>', '{ACTIVE_CONTROLLER}', '{ETCD}-<n>', '{ETCD_LEADER}'"
)
GONE_TIMEOUT_S = 10.0
POLL_S = 0.01
MAX_DIGITS = 9  # of a broker's id or a partition
MAX_FOLDER_BYTES = 480  # of its path: SQLite opens a file by a path of at most 512
_NAMED = re.compile(
    rf"{CONTROLLER}(-[1-9][0-9]{{0,{MAX_DIGITS - 1}}}|:active)?|{ETCD}(-[1-9][0-9]{{0,{MAX_DIGITS - 1}}}|:leader)"
)
_LOG_TAIL_LINES = 12
_LOG_TAIL_BYTES = 16 * 1024


class ClusterError(CommandFailed):
    """What went wrong with a local cluster, in words for its user."""


def target_of(text: str) -> Node | tuple[str, int] | None:
    """What a command or a request names: a broker's id, another process, "controller:active", "etcd:leader", or the leader
    of (topic, partition), whose number is -1 where it is none. None: nothing of these."""
    if _NAMED.fullmatch(text):
        return text
    if _is_number(text):
        return int(text)
    if not text.startswith(LEADER_PREFIX):
        return None
    topic, _, number = text.removeprefix(LEADER_PREFIX).rpartition("-")
    return topic, int(number) if _is_number(number) else -1


def checked_target(target: object) -> Node | tuple[str, int]:
    """What a program names: as `target_of`, by a number, or by a pair (topic, partition). Raises ClusterError."""
    named = target_of(target) if isinstance(target, str) else target
    match named:
        case bool():
            pass
        case int() | str():
            return named
        case (_, -1) if isinstance(target, str):
            raise ClusterError(f"target {target!r} names no partition: '{LEADER_PREFIX}<topic>-<partition>' does")
        case (str(topic), int(partition)) if isinstance(named, tuple) and not isinstance(partition, bool):
            return topic, partition
    pair = "" if isinstance(target, str) else "a pair (topic, partition), "
    raise ClusterError(f"target {target!r} is not {pair}{TARGETS}")


def numbered(kind: str, number: int) -> str:
    """The name of one of several controllers, or of one of etcd's members."""
    return f"{kind}-{number}"


def is_controller(node: Node) -> bool:
    return isinstance(node, str) and node.startswith(CONTROLLER)


def is_etcd(node: Node) -> bool:
    return isinstance(node, str) and node.startswith(ETCD)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS


def is_in_use(directory: Path) -> bool:
    """Whether some process holds the lock of this data folder (`fencepost_proto.runtime.process`)."""
    from fencepost_proto.runtime.process import LOCK_FILE

    return is_locked(directory / LOCK_FILE)


def is_locked(file: Path) -> bool:
    try:
        lock = os.open(file, os.O_RDONLY)
    except OSError:
        return False  # no process has ever run on it, or it may not be looked at
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


@dataclass(slots=True)
class Member:
    """One process of the cluster, running or not."""

    node: Node
    directory: Path
    port: int
    kafka_port: int = 0  # of a broker: for Kafka's clients; 0: none has been chosen yet
    kafka_advertised: str = ""  # where Kafka's clients are sent to, a proxy's address; empty: the port itself
    process: ProcessRef | None = None
    child: subprocess.Popen[bytes] | ForkedChild | None = None  # where this very process started it
    place: NetworkPlace | None = None  # None: here, on loopback
    meant_down: bool = False  # its end was asked for: it was killed, or told to stop
    _recognised: ProcessRef | None = None  # `process`, once it was seen alive

    @property
    def host(self) -> str:
        return self.place.host if self.place else LOOPBACK

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def kafka_address(self) -> str:
        return f"{self.host}:{self.kafka_port}"

    @property
    def metrics_address(self) -> str:
        """Where the process that runs now hands out its metrics; empty: nowhere."""
        said = self._said()
        return str(said.get("metrics_address", "")) if self.running() and self._is_of_this_process(said) else ""

    @property
    def config_file(self) -> Path:
        return self.directory / ("broker.toml" if isinstance(self.node, int) else "controller.toml")

    @property
    def log_file(self) -> Path:
        return self.directory / "server.log"

    @property
    def ready_file(self) -> Path:
        return self.directory / "process.json"

    @property
    def module(self) -> str:
        return "fencepost_node" if isinstance(self.node, int) else "fencepost_controller"

    def running(self) -> bool:
        """Reaps it too, where it is this process's child."""
        if self.child is not None:
            return self.child.poll() is None
        if self.process is not None and self.process is self._recognised:
            return self.process.goes_on()
        self._recognised = self.process if self.process is not None and self.process.alive() else None
        return self._recognised is not None

    def ended_by_itself(self) -> bool:
        """Whether it was started here, and has ended though no one asked for it."""
        return self.process is not None and not self.meant_down and not self.running()

    def ready(self) -> bool:
        """Whether the process that runs now has said that it listens."""
        return self._is_of_this_process(self._said())

    def _said(self) -> dict[str, object]:
        try:
            said = json.loads(self.ready_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return said if isinstance(said, dict) else {}

    def _is_of_this_process(self, said: dict[str, object]) -> bool:
        return self.process is not None and said.get("pid") == self.process.pid

    def paused(self) -> bool:
        return self.process is not None and self.process.paused()

    def in_use(self) -> bool:
        """Whether some process holds the lock of its folder, known to us or not."""
        return is_in_use(self.directory)

    def running_process(self) -> ProcessRef:
        """Raises ClusterError where it does not run."""
        if self.process is None or not self.running():
            raise ClusterError(f"{name_of(self.node)} is not running")
        return self.process

    def signal(self, number: signal.Signals) -> None:
        """Raises ClusterError where it does not run."""
        if not self.running_process().send(number):
            raise ClusterError(f"{name_of(self.node)} is not running")

    def still_running(self) -> None:
        """Raises ClusterError, with the end of its log, where it has ended."""
        if not self.running():
            code = f" with exit code {self.child.returncode}" if self.child else ""
            raise ClusterError(f"{name_of(self.node)} ended{code}; its log:\n{log_tail(self.log_file)}")

    async def wait_ready(self, timeout_s: float) -> None:
        """Return once it listens. Raises ClusterError, with the end of its log, where it ends or it takes too long."""

        def ready() -> bool:
            if self.ready():
                return True
            self.still_running()
            return False

        def late(_: str) -> ClusterError:
            return ClusterError(f"{name_of(self.node)} is not ready in time; its log:\n{log_tail(self.log_file)}")

        await until(ready, f"{name_of(self.node)} listens", timeout_s, poll_s=POLL_S, error=late)

    async def wait_gone(self, timeout_s: float = GONE_TIMEOUT_S) -> None:
        """Return once it has ended. Raises ClusterError where that takes too long."""

        def late(_: str) -> ClusterError:
            return ClusterError(f"{name_of(self.node)} has not ended within {timeout_s:g} s")

        await until(lambda: not self.running(), f"{name_of(self.node)} ends", timeout_s, poll_s=POLL_S, error=late)


def name_of(node: Node) -> str:
    return f"broker {node}" if isinstance(node, int) else node


def to_toml(settings: Settings) -> str:
    """A flat TOML document. JSON's numbers and booleans are TOML's too, and so are its strings where no character is
    written as two surrogates and DEL is escaped."""
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in settings.items())


def _toml_value(value: Setting) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def log_tail(path: Path) -> str:
    """The last lines of a log, indented for an error message."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    except FileNotFoundError:
        lines = []
    return "\n".join(f"    {line}" for line in lines) or "    (nothing)"


def usable_folder(directory: str | os.PathLike[str]) -> Path:
    """The absolute path of a cluster's folder. Raises ClusterError for one that its processes cannot use."""
    if not isinstance(directory, str | os.PathLike):
        raise ClusterError(f"directory={directory!r} is no path of a folder; brokers=3 says how many brokers there are")
    root = Path(directory).absolute()
    try:
        size = len(str(root).encode())
    except UnicodeEncodeError:
        raise ClusterError(f"{str(root)!r} cannot hold a cluster: its name is not UTF-8") from None
    if size > MAX_FOLDER_BYTES:
        raise ClusterError(
            f"{root} cannot hold a cluster: its path has {size} bytes, and {MAX_FOLDER_BYTES} is the most"
        )
    return root


def folder_of(node: Node) -> str:
    return f"broker-{node}" if isinstance(node, int) else node
