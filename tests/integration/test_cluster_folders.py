"""Rows of the gauntlet about the folder of a local cluster, on real processes. (What needs no real broker is in
tests/unit/test_local_cluster.py, by the same names.)"""

from __future__ import annotations

import shutil
from pathlib import Path

from fencepost_testing.local_cluster import AsyncLocalCluster
from tests.integration.command_line import Shell


def test_copied_cluster_folder(tmp_path: Path) -> None:
    """yugabyte-db issue 3753, rynfar/meridian 774: a copied folder works on the original's data.

    Here: the copy runs beside the original, on ports of its own, and each has its own records. A copy made while the
    original runs refuses to start: it finds its brokers' ids in use.
    """
    original, copy, live = (Shell(tmp_path / name) for name in ("original", "copy", "live"))
    original.ok("cluster", "up", "--brokers", "1")
    try:
        original.ok("topic", "create", "orders", "--partitions", "1")
        original.ok("produce", "orders", stdin=b"before\n")
        shutil.copytree(original.data_dir, live.data_dir)
        assert "broker id 1 is in use by the process at" in live.fails("cluster", "up")
        original.ok("cluster", "down")
        shutil.copytree(original.data_dir, copy.data_dir)
        original.ok("cluster", "up")
        original.ok("produce", "orders", stdin=b"original\n")
        copy.ok("cluster", "up")
        copy.ok("produce", "orders", stdin=b"copy\n")
        assert copy.ok("consume", "orders", "--until-end") == "before\ncopy\n"
        assert original.ok("consume", "orders", "--until-end") == "before\noriginal\n"
        copy.ok("cluster", "down", "--remove")
        assert original.ok("consume", "orders", "--until-end") == "before\noriginal\n"
    finally:
        for shell in (original, copy, live):
            if (shell.data_dir / "cluster.json").exists():
                AsyncLocalCluster.load(shell.data_dir).kill_all()


def test_up_without_brokers(tmp_path: Path) -> None:
    """strimzi-kafka-operator issue 9108, bitnami-docker-kafka issue 33: "up" is reported though every broker has ended.

    Here: the controller's data are gone, the brokers refuse the new cluster; `up` says so, fails, and leaves nothing.
    """
    shell = Shell(tmp_path / "cluster")
    shell.ok("cluster", "up", "--brokers", "1")
    try:
        shell.ok("topic", "create", "orders", "--partitions", "1")
        shell.ok("cluster", "down")
        for path in (shell.data_dir / "controller").iterdir():
            if path.name != "controller.toml":
                path.unlink()
        told = shell.fails("cluster", "up")
        assert "ended" in told
        assert "cluster" in told
        assert not AsyncLocalCluster.load(shell.data_dir).any_running()
        assert (shell.data_dir / "broker-1" / "orders-0").exists()
    finally:
        AsyncLocalCluster.load(shell.data_dir).kill_all()
