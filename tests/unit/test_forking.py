"""The fork server: what it forks is a process like any other, and lives no longer than the server and its owner."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fencepost_testing.forking import KILLED, ForkedChild, ForkFailed, ForkServer
from fencepost_testing.processes import ProcessRef
from fencepost_testing.waiting import until_sync

PROGRAM = """
import os, sys, time
print(sys.argv[1], os.environ["WORD"], os.getcwd(), flush=True)
print("an error", file=sys.stderr, flush=True)
if os.environ["WORD"] == "wait":
    time.sleep(60)
sys.exit(7)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a module `stand_in`, which the server finds."""
    (tmp_path / "stand_in.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fork(server: ForkServer, folder: Path, word: str) -> tuple[ProcessRef, ForkedChild]:
    return server.fork(["-m", "stand_in"], folder / "config.toml", folder / "log", {"WORD": word})


def test_a_forked_process_has_its_own_arguments_environment_and_log_and_its_end_is_told(folder: Path) -> None:
    server = ForkServer()
    try:
        server.wait_ready()
        process, child = fork(server, folder, "go")
        assert child.wait() == child.poll() == 7
        assert not process.alive()
        assert (folder / "log").read_text() == f"{folder}/config.toml go {folder}\nan error\n"

        process, child = fork(server, folder, "wait")
        assert child.poll() is None
        assert process.alive()
        assert process.send(signal.SIGSTOP)
        until_sync(process.paused, "it is paused")
        assert process.send(signal.SIGKILL)
        assert child.wait() == KILLED

        process, child = fork(server, folder, "wait")
        os.kill(server.pid, signal.SIGKILL)  # the kernel ends what it has forked
        assert child.wait() == KILLED
        until_sync(lambda: not process.alive(), "what a killed server has forked has ended")
        with pytest.raises(ForkFailed, match="it has ended"):
            fork(server, folder, "go")
        assert not server.usable()
    finally:
        server.close()


def test_what_was_forked_ends_with_the_server(folder: Path) -> None:
    server = ForkServer()
    process, _ = fork(server, folder, "wait")
    assert process.alive()
    server.close()
    assert not process.alive()
    server.close()  # once more is as good
