"""How the processes of a local cluster are named, and what its file remembers of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fencepost_testing.cluster_file import ClusterFile, new_member
from fencepost_testing.cluster_folder import nodes_of
from fencepost_testing.cluster_settings import ClusterSettings
from fencepost_testing.etcd_member import EtcdMember
from fencepost_testing.member import ClusterError, folder_of, name_of, target_of


def test_the_processes_of_a_cluster() -> None:
    assert nodes_of(2) == ["controller", 1, 2]
    several = nodes_of(1, 2)
    assert several == ["controller-1", "controller-2", "etcd-1", "etcd-2", "etcd-3", 1]
    assert [folder_of(node) for node in several] == [*several[:-1], "broker-1"]
    assert [name_of(node) for node in several] == [*several[:-1], "broker 1"]


@pytest.mark.parametrize("text", ["controller", "controller-1", "controller:active", "etcd-12", "etcd:leader"])
def test_a_target_that_is_a_process_or_a_role(text: str) -> None:
    assert target_of(text) == text


@pytest.mark.parametrize(
    "text",
    ["controller-", "controller-0", "controller-1x", "controller:leader", "etcd", "etcd:active", "etcd-1/..", "a"],
)
def test_what_is_no_target(text: str) -> None:
    assert target_of(text) is None


def test_the_file_of_a_cluster_remembers_every_kind_of_process(tmp_path: Path) -> None:
    members = {node: new_member(node, tmp_path / folder_of(node), port) for port, node in enumerate(nodes_of(1, 2), 1)}
    member = members["etcd-2"]
    assert isinstance(member, EtcdMember)
    member.peer_port = 77
    ClusterFile(members, {}, {}).write(tmp_path)
    read = ClusterFile.read(tmp_path).members
    assert read == members
    assert [type(one) for one in read.values()] == [type(one) for one in members.values()]


@pytest.mark.parametrize("node", ["../x", "controller:active", None, 1.5, "leader:a-0"])
def test_a_file_that_names_no_process_is_refused(tmp_path: Path, node: object) -> None:
    ClusterFile(members={1: new_member(1, tmp_path)}, controller_overrides={}, broker_overrides={}).write(tmp_path)
    text = (tmp_path / "cluster.json").read_text()
    state = json.loads(text)
    state["members"][0]["node"] = node
    (tmp_path / "cluster.json").write_text(json.dumps(state))
    with pytest.raises(ClusterError, match="is not a cluster's state of this version"):
        ClusterFile.read(tmp_path)


def test_settings_by_name_have_controllers_too() -> None:
    settings = ClusterSettings.of({"controllers": 3, "session_timeout_ms": 1_000})
    assert (settings.brokers, settings.controllers, settings.controller) == (3, 3, (("session_timeout_ms", 1_000),))
    with pytest.raises(ClusterError, match="controllers=True: must be a whole number"):
        ClusterSettings.of({"controllers": True})
    with pytest.raises(ClusterError, match="no setting of a cluster is called 'etcd_endpoints'"):
        ClusterSettings.of({"etcd_endpoints": "a:1"})
