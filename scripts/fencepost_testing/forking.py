"""Processes by a fork server: one for this process, made at first use, which all its clusters share."""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fencepost_testing.failures import CommandFailed
from fencepost_testing.processes import ProcessRef, import_path, start_time

FORK_TIMEOUT_S = 30.0  # the first waits until the code is loaded
KILLED = -9
_READ_BYTES = 1 << 16
_POLL_S = 0.05


class ForkFailed(CommandFailed):
    """The fork server does not fork."""


class ForkedChild:
    """One process that it has forked; like a Popen, as far as a cluster uses one."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server = server
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code (negative: the signal); None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.ended(self.pid)
        return self.returncode

    def wait(self) -> int:
        """Block until it has ended; the exit code."""
        while (code := self.poll()) is None:
            self._server.wait(_POLL_S)
        return code


class ForkServer:
    """The server's process, and what it has said so far. Any thread may use it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P: nothing from the current folder
                [sys.executable, "-P", "-m", "fencepost_testing.fork_server", str(self.owner)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,  # it writes there only why it cannot go on
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": import_path()},
            )
        self._unread = b""
        self._ready = self._gone = self._closed = False
        self._asked = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._ended: dict[int, int] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    def usable(self) -> bool:
        """Whether it runs, and is this process's own: not that of one that this was forked from."""
        return self.owner == os.getpid() and not self._gone

    def wait_ready(self) -> None:
        """Until the code is loaded; then a fork takes a few milliseconds. Raises ForkFailed."""
        deadline = time.monotonic() + FORK_TIMEOUT_S
        while not self._ready:
            with self._lock:
                self._receive(_POLL_S)
            if self._gone or time.monotonic() > deadline:
                raise self._failure("it has ended" if self._gone else f"not ready in {FORK_TIMEOUT_S:g} s")

    def _failure(self, reason: str) -> ForkFailed:
        assert self._process.stderr is not None
        said = f"; it wrote: {self._process.stderr.read().decode(errors='replace')}" if self._gone else ""
        return ForkFailed(f"{sys.executable} -m fencepost_testing.fork_server does not fork: {reason}{said}")

    def fork(
        self, arguments: Sequence[str], config_file: Path, log_file: Path, environment: Mapping[str, str]
    ) -> tuple[ProcessRef, ForkedChild]:
        """As `processes.spawn`. Raises ForkFailed."""
        with self._lock:
            self._asked += 1
            number = self._asked
            request = {
                "fork": number,
                "arguments": list(arguments),
                "config": str(config_file),
                "log": str(log_file.absolute()),
                "environment": {**os.environ, "PYTHONPATH": import_path(), **environment},
                "cwd": os.getcwd(),
            }
            try:
                self._socket.sendall(json.dumps(request).encode() + b"\n")
            except OSError:
                self._gone = True
            deadline = time.monotonic() + FORK_TIMEOUT_S
            while number not in self._answers and not self._gone and time.monotonic() < deadline:
                self._receive(_POLL_S)
            answer = self._answers.pop(number, {})
            pid = answer.get("pid")
            if pid is None:
                reason = answer.get("error", "it has ended" if self._gone else f"no answer in {FORK_TIMEOUT_S:g} s")
                raise self._failure(reason)
        # It is no child of this process, and its command line is the server's: pid and start time identify it.
        return ProcessRef(pid, time.time(), "", start_time(pid)), ForkedChild(self, pid)

    def ended(self, pid: int) -> int | None:
        """The exit code of what it has forked; None while that runs."""
        if self.owner != os.getpid():
            return None
        with self._lock:
            self._receive(0.0)
            if pid in self._ended:
                return self._ended[pid]
            return KILLED if self._gone else None  # the kernel kills them with the server

    def wait(self, timeout_s: float) -> None:
        """For news."""
        with self._lock:
            self._receive(timeout_s)

    def _receive(self, timeout_s: float) -> None:
        """Take what the server says; called under the lock."""
        while not self._gone and select.select([self._socket], [], [], timeout_s)[0]:
            try:
                data = self._socket.recv(_READ_BYTES)
            except OSError:
                data = b""
            if not data:
                self._gone = True
                self._process.wait()
                return
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if "forked" in said:
                    self._answers[said["forked"]] = said
                elif "ready" in said:
                    self._ready = True
                else:
                    self._ended[said["ended"]] = int(said["code"])
            timeout_s = 0.0

    def close(self) -> None:
        """End it, and whatever it has forked. In a fork of its owner it does nothing."""
        if self.owner == os.getpid() and not self._closed:
            self._closed = True
            self._socket.close()
            self._process.communicate()
            self._gone = True


_lock = threading.Lock()
_server: ForkServer | None = None


def fork_server() -> ForkServer | None:
    """This process's, started where there is none; None where the system has no safe fork (others than Linux)."""
    global _server  # noqa: PLW0603  # one for the process, as its docstring says
    if sys.platform != "linux":
        return None
    with _lock:
        if _server is None or not _server.usable():
            _server = ForkServer()
            atexit.register(_server.close)
        return _server
