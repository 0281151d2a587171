"""Run as a program by `forking.ForkServer`: has the code of brokers and controllers loaded, and forks one for each request.

Loading it takes most of a process's start; so a cluster starts, and a broker comes back, in a fraction of the time, and
all share the memory that the code takes.

A fork takes over one thread and whatever state there is. So this process has only the one, and neither an event loop nor
any use of gRPC: it imports, reads requests and forks. It refuses to fork where it is not alone.

Requests and answers are lines of JSON, on the socket that is its standard input:

    {"fork": N, "arguments": ["-m", …], "config": PATH, "log": PATH, "environment": {…}, "cwd": PATH}
    {"ready": true}, once the code is loaded
    {"forked": N, "pid": PID}     or    {"forked": N, "error": TEXT}
    {"ended": PID, "code": EXIT CODE, negative for a signal}

What was forked lives no longer than the owner of the socket: when that ends, in whatever way, all are killed, and when this
process ends, in whatever way, the kernel kills them (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

LOADED = ("fencepost_node.__main__", "fencepost_controller.__main__", "fencepost_testing.faults.process")
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_READ_BYTES = 1 << 16
_IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)  # they are meant for the owner

Run = Callable[[], None]


class _Server:
    """Until the owner is gone, or in a child that was forked: then `serve` returns what that is to run."""

    def __init__(self, owner: int) -> None:
        self._socket = socket.socket(fileno=os.dup(0))
        self._ends, self._wakes = os.pipe()  # a byte for each signal that a child has ended
        os.set_blocking(self._wakes, False)
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._owner = os.pidfd_open(owner)
        self._children: set[int] = set()
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def serve(self) -> Run | None:
        self._tell({"ready": True})
        unread = b""
        while True:
            sources: list[socket.socket | int] = [self._socket, self._ends, self._owner]
            readable, _, _ = select.select(sources, [], [])
            if self._ends in readable:
                os.read(self._ends, _READ_BYTES)
                self._reap()
            if self._owner in readable:
                self._kill_all()
                return None
            if self._socket in readable:
                data = self._socket.recv(_READ_BYTES)
                if not data:
                    self._kill_all()
                    return None
                *lines, unread = (unread + data).split(b"\n")
                for line in lines:
                    run = self._fork(json.loads(line))
                    if run is not None:
                        return run

    def _kill_all(self) -> None:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # not yet waited for, so no other process has its number

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._children.discard(pid)
            self._tell({"ended": pid, "code": os.waitstatus_to_exitcode(status)})

    def _tell(self, answer: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the owner has gone: the next select says so
            self._socket.sendall(json.dumps(answer).encode() + b"\n")

    def _fork(self, asked: dict[str, Any]) -> Run | None:
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            self._tell({"forked": asked["fork"], "error": f"the fork server has {threads} threads"})
            return None
        server = os.getpid()
        pid = os.fork()
        if pid != 0:
            self._children.add(pid)
            self._tell({"forked": asked["fork"], "pid": pid})
            return None
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for descriptor in (self._ends, self._wakes, self._owner):
            os.close(descriptor)
        self._socket.close()
        self._prctl(_PR_SET_NAME, os.path.basename(os.path.dirname(asked["config"])).encode()[:15])
        return lambda: _become(asked)


def _become(asked: dict[str, Any]) -> None:
    """Run what was asked for, as a new process of `python ARGUMENTS CONFIG` would."""
    for number in (signal.SIGCHLD, *_IGNORED):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    log = os.open(asked["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    _, module, *arguments = asked["arguments"]  # behind -m
    sys.argv = [module, *arguments, asked["config"]]
    for name in LOADED:
        sys.modules.pop(name)  # it runs as the main module, and what it imports is loaded already
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> Run | None:
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    server = _Server(int(sys.argv[1]))
    gc.disable()  # an import leaves no garbage, and would be interrupted a hundred times to look for it
    for name in LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.enable()
    gc.freeze()  # a collection in one of the children would write to all of this, and so copy it
    return server.serve()


if __name__ == "__main__":
    job = main()
    if job is not None:
        job()
