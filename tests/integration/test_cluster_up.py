"""What `fencepost cluster up` starts: without faults unless asked, and controlled by HTTP where that is asked for."""

from __future__ import annotations

import json
import re
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from fencepost_testing.faults.board import FOLDER, Board
from fencepost_testing.faults.rules import RequestAction, RequestRule
from fencepost_testing.local_cluster import AsyncLocalCluster
from tests.integration.command_line import TIMEOUT_S, Shell
from tests.integration.control_client import Served


def test_a_kept_cluster_has_no_faults_unless_asked_and_is_controlled_by_http(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "cluster", extra={"BROWSER": "true"})  # which opens nothing
    try:
        shell.ok("cluster", "up", "--brokers", "1")
        nothing_switches_faults_on(shell)
        shell.ok("cluster", "down")
        others_may_change_it_meanwhile(shell)
        its_page_is_shown_until_the_command_ends(shell)
    finally:
        AsyncLocalCluster.load(shell.data_dir).kill_all()


def nothing_switches_faults_on(shell: Shell) -> None:
    """Not the command that sets them, and not a board that is put in the folder by hand."""
    cluster = AsyncLocalCluster.load(shell.data_dir)
    refused = shell.fails("faults", "drop-requests", "--api", "Produce")
    assert "was started without faults: 'fencepost cluster up --faults'" in refused
    assert "runs without faults: 'fencepost cluster down' first" in shell.fails("cluster", "up", "--faults")
    for member in cluster.members.values():
        assert member.process is not None
        assert "fencepost_testing" not in " ".join(psutil.Process(member.process.pid).cmdline())
    board = Board.create(shell.data_dir / FOLDER)
    posted = board.post(RequestRule(RequestAction.DROP_REQUEST))
    shell.ok("topic", "create", "orders")
    assert board.count(posted.id) == 0
    board.close()
    shutil.rmtree(shell.data_dir / FOLDER)


@contextmanager
def command_that_lasts(shell: Shell, *arguments: str) -> Iterator[IO[str]]:
    """What it prints. It ends by Ctrl-C, and leaves the cluster up."""
    command = shell.start(*arguments)
    try:
        assert command.stdout is not None
        yield command.stdout
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=TIMEOUT_S)
        shell.ok("cluster", "status")
    finally:
        command.kill()
        command.communicate(timeout=TIMEOUT_S)


def others_may_change_it_meanwhile(shell: Shell) -> None:
    """The server finds the cluster as other commands have left it."""
    with command_that_lasts(shell, "cluster", "up", "--faults", "--control-port", "0", "--json") as printed:
        served = Served(json.loads(printed.readline()))
        served.do("POST", "/topics", {"name": "payments", "min_insync_replicas": 1})
        fault = served.do("POST", "/faults/drop-answers", {"api": "Produce", "times": 1})
        shell.ok("cluster", "restart", "1")
        assert served.do("POST", "/processes/leader:payments-0/kill") == {"node": 1}
        assert "broker 1 is not running" in shell.fails("cluster", "kill", "1")
        served.do("POST", "/cluster/heal")
        assert served.do("GET", f"/faults/{fault['id']}") == {**fault, "set": False}


def its_page_is_shown_until_the_command_ends(shell: Shell) -> None:
    with command_that_lasts(shell, "cluster", "up", "--ui") as printed:
        found = next(filter(None, (re.search(r"http://\S+/", line) for line in printed)))
        with urllib.request.urlopen(found.group(), timeout=TIMEOUT_S) as page:
            assert b"<title>" in page.read()


def test_what_cannot_be_asked_of_up_is_refused_before_anything_starts(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "cluster")
    assert "run 'fencepost ui' beside" in shell.fails("cluster", "up", "--ui", "--control-port", "0", code=2)
    assert "a token of 5 characters" in shell.fails("cluster", "up", "--control-port", "0", "--token", "short")
    assert not (tmp_path / "cluster" / "cluster.json").exists()
