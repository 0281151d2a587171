"""A command tells apart: no cluster here, it is down, it is paused, its address is wrong; and says what to type next."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import typer

from fencepost_cli.terminal import bootstrap_of
from fencepost_testing import LocalCluster

pytestmark = pytest.mark.fencepost(brokers=1)


def told(capsys: pytest.CaptureFixture[str], bootstrap: str | None, data_dir: Path) -> str:
    """The one line of a command that cannot reach its cluster."""
    with pytest.raises(typer.Exit):
        bootstrap_of(bootstrap, data_dir)
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_no_cluster_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = told(capsys, None, tmp_path)
    assert f"no cluster in {tmp_path}: start one with 'fencepost cluster up' (or name one with --bootstrap)" in line


def test_it_is_down_or_paused(capsys: pytest.CaptureFixture[str], fencepost: LocalCluster) -> None:
    assert bootstrap_of(None, fencepost.directory) == fencepost.bootstrap
    fencepost.pause(1)
    assert "is paused: 'fencepost cluster resume 1'" in told(capsys, None, fencepost.directory)
    fencepost.kill(1)
    assert "runs: start it with 'fencepost cluster up'" in told(capsys, None, fencepost.directory)


def test_the_address_is_wrong(capsys: pytest.CaptureFixture[str], fencepost: LocalCluster, tmp_path: Path) -> None:
    with socket.socket() as held:  # bound, and not listening
        held.bind(("127.0.0.1", 0))
        nothing = f"127.0.0.1:{held.getsockname()[1]}"
        line = told(capsys, nothing, tmp_path)
        assert f"{nothing}: nothing listens there: 'fencepost cluster status' shows a local cluster's addresses" in line
        line = told(capsys, f"no-such-host.invalid:9092,{nothing}", tmp_path)
        assert "no-such-host.invalid:9092: there is no host of that name" in line
        line = told(capsys, fencepost.kafka_bootstrap, tmp_path)
        assert (
            f"{fencepost.kafka_bootstrap}: that port is for Kafka's clients; 'fencepost cluster status' shows" in line
        )
        assert bootstrap_of(f"{nothing},{fencepost.bootstrap}", tmp_path) == f"{nothing},{fencepost.bootstrap}"
