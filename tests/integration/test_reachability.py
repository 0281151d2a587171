"""A command tells apart: no cluster here, it is down, it is paused, its address is wrong; and says what to type next."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fencepost_cli.main import app
from fencepost_cli.reachability import CONNECT_TIMEOUT_S
from fencepost_cli.terminal import bootstrap_of
from fencepost_testing import LocalCluster

MOST_QUEUED = 4  # connections that a queue of none holds nevertheless, and some more
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


@pytest.fixture
def silent() -> Iterator[str]:
    """An address from which nothing comes back, as behind a firewall: its queue of connections is full, so the system drops
    what is sent there."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as full:
        address = server.getsockname()
        for _ in range(MOST_QUEUED):
            waiting = full.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield f"127.0.0.1:{address[1]}"


def test_nothing_comes_back(capsys: pytest.CaptureFixture[str], tmp_path: Path, silent: str) -> None:
    began = time.monotonic()
    line = told(capsys, f"{silent},localhost:{silent.partition(':')[2]}", tmp_path)
    assert time.monotonic() - began < 2 * CONNECT_TIMEOUT_S  # both are looked at side by side
    assert f"{silent}: nothing comes back from there; localhost" in line
    assert "see whether that machine runs and a firewall lets connections to the port through, or name other" in line


def test_brokers_accept_and_do_not_answer(fencepost: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fencepost.cluster.START_TIMEOUT_S", 1.0)
    fencepost.pause(1)
    done = CliRunner().invoke(app, ["topic", "list", "--bootstrap", fencepost.bootstrap])
    assert done.exit_code == 1
    assert "no broker answered within 1 s" in done.output
    assert "'fencepost cluster status' shows whether a local cluster's brokers run or are paused" in done.output
