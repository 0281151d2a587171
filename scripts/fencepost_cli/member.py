"""One process of a local cluster: its folder, its port, and whether it runs and is ready."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fencepost_cli.failures import CommandFailed
from fencepost_cli.ports import LOOPBACK
from fencepost_cli.processes import Place, ProcessRef

Controller = Literal["controller"]
Node = int | Controller
Setting = str | int | float | bool
Settings = Mapping[str, Setting]

CONTROLLER: Controller = "controller"
_LOG_TAIL_LINES = 12
_LOG_TAIL_BYTES = 16 * 1024


class ClusterError(CommandFailed):
    """What went wrong with a local cluster, in words for its user."""


@dataclass(slots=True)
class Member:
    """One process of the cluster, running or not."""

    node: Node
    directory: Path
    port: int
    process: ProcessRef | None = None
    child: subprocess.Popen[bytes] | None = None  # where this very process started it
    place: Place | None = None  # None: here, on loopback

    @property
    def address(self) -> str:
        return f"{self.place.host if self.place else LOOPBACK}:{self.port}"

    @property
    def config_file(self) -> Path:
        return self.directory / ("controller.toml" if self.node == CONTROLLER else "broker.toml")

    @property
    def log_file(self) -> Path:
        return self.directory / "server.log"

    @property
    def ready_file(self) -> Path:
        return self.directory / "process.json"

    @property
    def module(self) -> str:
        return "fencepost_controller" if self.node == CONTROLLER else "fencepost_node"

    def running(self) -> bool:
        """Reaps it too, where it is this process's child."""
        if self.child is not None:
            return self.child.poll() is None
        return self.process is not None and self.process.alive()

    def ready(self) -> bool:
        """Whether the process that runs now has said that it listens."""
        try:
            said = json.loads(self.ready_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        return self.process is not None and isinstance(said, dict) and said.get("pid") == self.process.pid


def name_of(node: Node) -> str:
    return node if node == CONTROLLER else f"broker {node}"


def to_toml(settings: Settings) -> str:
    """A flat TOML document. JSON's strings, numbers and booleans are TOML's too."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


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


def folder_of(node: Node) -> str:
    return CONTROLLER if node == CONTROLLER else f"broker-{node}"
