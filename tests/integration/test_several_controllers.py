"""Local clusters of several controllers, on a real etcd of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fencepost_testing.cluster_status import ClusterStatus
from fencepost_testing.faults.rules import FaultError
from fencepost_testing.local_cluster import ClusterError, LocalCluster
from fencepost_testing.waiting import until_sync
from tests.integration.command_line import Shell
from tests.integration.etcd_processes import ETCD, NO_ETCD

with_etcd = pytest.mark.skipif(ETCD is None, reason=NO_ETCD)
SHORT = {"session_timeout_ms": 1_000, "heartbeat_interval_ms": 200, "leader_lease_s": 2}


def wait_other(cluster: LocalCluster, old: str, target: str) -> str:
    """Once another process is what the target names."""

    def other() -> str | None:
        found = str(cluster.resolve(target))
        return found if found != old else None

    return str(until_sync(other, f"{target} is not {old} any more", 30))


def settled(cluster: LocalCluster) -> ClusterStatus | None:
    """Its status; None: something is not well, etcd elects, or another controller was active a moment later. A lease of two
    seconds is short for a busy machine."""
    status = cluster.status()
    roles = [process.role for process in status.processes]
    has_all = [roles.count(role) for role in ("active", "standby", "leader", "follower")] == [1, 2, 1, 2]
    same = status.healthy and status.active_controller == str(cluster.resolve("controller:active"))
    return status if has_all and same else None


@with_etcd
@pytest.mark.fencepost(controllers=3, **SHORT)
def test_whoever_decides_may_be_killed_paused_and_cut_off(fencepost: LocalCluster) -> None:
    cluster = fencepost
    topic = cluster.create_topic(partitions=3)
    killed = str(cluster.resolve("controller:active"))
    cluster.kill("controller:active", "etcd:leader")
    wait_other(cluster, killed, "controller:active")
    assert cluster.leader(topic, 0)
    cluster.up()
    status = until_sync(lambda: settled(cluster), "all are healthy, one is active, and one leads etcd", 30)
    assert status is not None
    paused = status.active_controller

    cluster.pause(paused)
    cut = wait_other(cluster, paused, "controller:active")
    cluster.resume(paused)
    with cluster.faults.cut(cut, ("etcd-1", "etcd-2", "etcd-3")) as fault:
        wait_other(cluster, cut, "controller:active")
        cluster.create_topic()
        assert fault.fired
    assert cluster.status().controller_epoch > status.controller_epoch
    cluster.check_exactly_once(topic)


@with_etcd
@pytest.mark.fencepost(controllers=3, **SHORT)
def test_without_a_majority_of_etcd_the_status_says_so(fencepost: LocalCluster) -> None:
    fencepost.pause("etcd-1", "etcd-3")
    status = fencepost.status()
    assert not status.healthy
    trouble = {process.name: process.trouble for process in status.processes if process.trouble}
    assert trouble["etcd-1"] == trouble["etcd-3"] == "it does not answer"
    fencepost.resume("etcd-1", "etcd-3")
    until_sync(lambda: fencepost.status().healthy, "the cluster is healthy", 30)


@with_etcd
@pytest.mark.fencepost(controllers=3, **SHORT)
def test_faults_that_several_controllers_cannot_have_are_refused(fencepost: LocalCluster) -> None:
    with pytest.raises(FaultError, match="links between members of etcd cannot have faults"):
        fencepost.faults.cut("etcd-1", "etcd-2")
    with pytest.raises(FaultError, match="'controller' in this cluster: it has 1, 2, 3; its metadata is in etcd"):
        fencepost.faults.fill_disk("controller")
    with pytest.raises(ClusterError, match="no controller in this cluster: it has controller-1, controller-2"):
        fencepost.kill("controller")


@with_etcd
def test_commands_on_several_controllers(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "data")
    assert "cluster of 3 brokers and 2 controllers is up" in shell.ok("cluster", "up", "--controllers", "2")
    try:
        assert "has 2 controllers, not 3" in shell.fails("cluster", "up", "--controllers", "3")
        shell.ok("topic", "create", "orders")
        killed = shell.ok("cluster", "kill", "controller:active", "etcd-2").split()[0]
        assert f"{killed} restarted" in shell.ok("cluster", "restart", killed)
        told = json.loads(shell.run("cluster", "status", "--json").stdout)
        assert told["active_controller"].startswith("controller-")
        assert told["controller_epoch"] > 1
        assert "etcd: 2 of 3 members serve, version" in shell.run("cluster", "status").stdout
        shell.ok("cluster", "down")
        shell.ok("cluster", "up")  # from what is in etcd
        assert "orders" in shell.ok("cluster", "status")
        assert "is in etcd: give --config" in shell.fails("controller", "recover")
    finally:
        shell.ok("cluster", "down", "--remove")
    assert not (tmp_path / "data").exists()


def test_without_etcd_the_command_says_how_to_install_it(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "data", extra={"PATH": str(tmp_path)})
    message = shell.fails("cluster", "up", "--controllers", "3")
    assert "etcd, which is not installed: sudo apt-get install etcd-server" in message
