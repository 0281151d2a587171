"""The controller's folder is put back from a backup, or lost: on real processes, as an operator meets it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fencepost_proto.runtime.process import EXIT_WENT_BACK
from fencepost_testing.local_cluster import AsyncLocalCluster
from tests.integration.command_line import Shell


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path / "cluster")
    shell.ok("cluster", "up", "--brokers", "2")
    try:
        yield shell
    finally:
        AsyncLocalCluster.load(shell.data_dir).kill_all()


def lines(*numbers: int, prefix: str) -> bytes:
    return "".join(f"{prefix}-{number}\n" for number in numbers).encode()


def read(shell: Shell, topic: str) -> list[str]:
    return sorted(shell.ok("consume", topic, "--until-end").splitlines())


def test_metadata_goes_back_and_is_recovered_by_a_command(shell: Shell, tmp_path: Path) -> None:
    """See tests/gauntlet/test_gauntlet_metadata.py; here with every command that an operator types."""
    controller, backup = shell.data_dir / "controller", tmp_path / "backup"
    shell.ok("topic", "create", "early", "--partitions", "1", "--replication-factor", "2")
    shell.ok("produce", "early", stdin=lines(1, prefix="early"))
    shell.ok("cluster", "down")
    shutil.copytree(controller, backup)
    shell.ok("cluster", "up")
    shell.ok("topic", "create", "late", "--partitions", "1", "--replication-factor", "2")
    shell.ok("produce", "late", stdin=lines(1, prefix="anonymous"))
    shell.ok("produce", "late", "--name", "loader", stdin=lines(1, prefix="named"))
    assert "the controller runs" in shell.fails("controller", "recover")
    shell.ok("cluster", "down")

    shutil.rmtree(controller)
    shutil.copytree(backup, controller)
    told = shell.fails("cluster", "up")
    assert f"controller ended with exit code {EXIT_WENT_BACK}" in told
    assert "this controller's store has gone back: it is at metadata version" in told
    assert not AsyncLocalCluster.load(shell.data_dir).any_running()
    assert (shell.data_dir / "broker-1" / "late-0").exists()

    told = shell.ok("controller", "recover")
    assert "reported by brokers [1, 2]" in told
    assert "2 topics with 2 partitions" in told
    (report,) = controller.glob("recovery-*.txt")
    assert report.read_text() in told
    assert not AsyncLocalCluster.load(shell.data_dir).any_running()
    shell.ok("cluster", "up")
    shell.ok("produce", "late", stdin=lines(2, prefix="anonymous"))
    shell.ok("produce", "late", "--name", "loader", stdin=lines(2, prefix="named"))
    assert read(shell, "late") == ["anonymous-1", "anonymous-2", "named-1", "named-2"]
    logs = "".join(path.read_text() for path in shell.data_dir.glob("broker-*/server.log"))
    assert "deleting folder" not in logs
    assert "is set aside" not in logs


def test_a_controller_that_is_no_part_of_a_local_cluster_is_recovered_by_its_configuration(shell: Shell) -> None:
    cluster = AsyncLocalCluster.load(shell.data_dir)
    config = str(shell.data_dir / "controller" / "controller.toml")
    assert "--config and --bootstrap go together" in shell.fails("controller", "recover", "--config", config, code=2)
    text = Path(config).read_text()
    asked = ("controller", "recover", "--config", config, "--bootstrap", cluster.bootstrap)
    assert "is in use by another process" in shell.fails(*asked)
    shell.ok("topic", "create", "orders", "--partitions", "1", "--replication-factor", "2")
    shell.ok("cluster", "stop", "controller")
    shutil.rmtree(shell.data_dir / "controller")  # and lost
    (shell.data_dir / "controller").mkdir()
    Path(config).write_text(text)
    assert "1 topics with 1 partitions" in shell.ok(*asked)
    shell.ok("cluster", "up")
    shell.ok("produce", "orders", stdin=b"x\n")
    assert read(shell, "orders") == ["x"]
