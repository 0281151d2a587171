"""One member of etcd in a local cluster: the system's own program, with its data and configuration in the cluster's folder.

It listens on two ports: one for controllers, one for the other members. The second one stands in etcd's own data, so it
cannot move, as other ports of a cluster can.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fencepost_testing.member import ClusterError, Member, is_locked

PEER_PORT: Final = 2380  # etcd's own default
ETCD_MEMBERS: Final = 3  # of a cluster with several controllers: the loss of one changes nothing
PROGRAM: Final = "etcd"
LIBRARY: Final = "aetcd"
INSTALL_PROGRAM: Final = "sudo apt-get install etcd-server"
INSTALL_LIBRARY: Final = "pip install 'fencepost[etcd]'"
_KEPT_REVISIONS: Final = "10000"  # etcd forgets older ones: a reader that is further behind starts from the snapshot
_CONNECT_S: Final = 0.5


class NoEtcd(ClusterError):
    """Several controllers need etcd, and something of it is not installed here."""


def find_etcd() -> str:
    """The program's path. Raises NoEtcd, with the command that installs what is missing."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise NoEtcd(f"several controllers keep their metadata in etcd, which is not installed: {INSTALL_PROGRAM}")
    if find_spec(LIBRARY) is None:
        raise NoEtcd(f"several controllers need the library {LIBRARY}, which is not installed: {INSTALL_LIBRARY}")
    return program


@dataclass(slots=True)
class EtcdMember(Member):
    """`port` is for controllers."""

    peer_port: int = PEER_PORT  # for the other members; where the member has an address of its own: the default

    @property
    def peer_url(self) -> str:
        return f"http://{self.host}:{self.peer_port}"

    @property
    def config_file(self) -> Path:
        return self.directory / "etcd.yml"

    def in_use(self) -> bool:
        return is_locked(self.directory / "data" / "member" / "snap" / "db")

    def command(self) -> list[str]:
        """Raises NoEtcd."""
        return [find_etcd(), "--config-file", str(self.config_file)]

    def ready(self) -> bool:
        """Whether it listens. Whether it serves depends on the others too: it needs a majority."""
        return all(_listens(self.host, port) for port in (self.port, self.peer_port))

    def write_config(self, members: Iterable[EtcdMember]) -> None:
        """`members`: all of them. JSON is YAML too."""
        client_url = f"http://{self.address}"
        settings = {
            "name": self.node,
            "data-dir": str(self.directory / "data"),
            "listen-client-urls": client_url,
            "advertise-client-urls": client_url,
            "listen-peer-urls": self.peer_url,
            "initial-advertise-peer-urls": self.peer_url,
            "initial-cluster": ",".join(f"{member.node}={member.peer_url}" for member in members),
            "initial-cluster-state": "new",
            "auto-compaction-mode": "revision",
            "auto-compaction-retention": _KEPT_REVISIONS,
            "logger": "zap",
        }
        self.config_file.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), _CONNECT_S).close()
    except OSError:
        return False
    return True
