"""cluster.json: what a local cluster's folder remembers of it from one command to the next."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fencepost_testing.etcd_member import EtcdMember
from fencepost_testing.member import ClusterError, Member, Node, Setting, folder_of, is_etcd, target_of
from fencepost_testing.processes import ProcessRef

STATE_FILE = "cluster.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """Its content."""

    members: dict[Node, Member]
    controller_overrides: dict[str, Setting]
    broker_overrides: dict[str, Setting]
    faults: bool = False  # its processes are started so that faults can be set on them

    @classmethod
    def read(cls, root: Path) -> ClusterFile:
        """Raises ClusterError where it is missing or cannot be used."""
        path = root / STATE_FILE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ClusterError(f"no cluster in {root}: start one with 'fencepost cluster up'") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ClusterError(f"{path} cannot be read: {error}") from error
        try:
            return cls._decoded(root, state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ClusterError(f"{path} is not a cluster's state of this version: {error!r}") from error

    @classmethod
    def _decoded(cls, root: Path, state: dict[str, Any]) -> ClusterFile:
        if state["version"] != _VERSION:
            raise ValueError(f"version {state['version']}")
        members: dict[Node, Member] = {}
        for said in state["members"]:
            node = _node_of(said["node"])
            kafka_port = int(said.get("kafka_port", 0))  # not in files of older versions
            member = new_member(node, root / folder_of(node), int(said["port"]), kafka_port)
            if isinstance(member, EtcdMember):
                member.peer_port = int(said["peer_port"])
            if said["pid"]:
                started = str(said.get("started", ""))  # not in files of older versions
                config_file = "" if said.get("forked") else str(member.config_file)
                member.process = ProcessRef(int(said["pid"]), float(said["create_time_s"]), config_file, started)
            members[node] = member
        faults = bool(state.get("faults", False))  # not in files of older versions
        return cls(members, state["controller_overrides"], state["broker_overrides"], faults)

    def write(self, root: Path) -> None:
        """In one step: other commands may read it meanwhile."""
        brokers = [member for member in self.members.values() if isinstance(member.node, int)]
        state = {
            "version": _VERSION,
            "bootstrap": ",".join(member.address for member in brokers),
            "kafka_bootstrap": ",".join(member.kafka_address for member in brokers),
            "members": [
                {
                    "node": member.node,
                    "port": member.port,
                    "kafka_port": member.kafka_port,
                    **({"peer_port": member.peer_port} if isinstance(member, EtcdMember) else {}),
                    "pid": member.process.pid if member.process else 0,
                    "create_time_s": member.process.create_time_s if member.process else 0.0,
                    "started": member.process.started if member.process else "",
                    "forked": bool(member.process and not member.process.config_file),
                }
                for member in self.members.values()
            ],
            "controller_overrides": self.controller_overrides,
            "broker_overrides": self.broker_overrides,
            "faults": self.faults,
        }
        draft = root / f".{STATE_FILE}.{os.getpid()}"
        draft.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        draft.replace(root / STATE_FILE)


def new_member(node: Node, directory: Path, port: int = 0, kafka_port: int = 0) -> Member:
    """Of the kind that its name says."""
    return (EtcdMember if is_etcd(node) else Member)(node, directory, port, kafka_port)


def _node_of(said: object) -> Node:
    """Raises ValueError for what names no process."""
    if isinstance(said, int):
        return said
    node = target_of(str(said))
    if not isinstance(node, int | str) or ":" in str(node):
        raise ValueError(f"node {said!r}")
    return node
