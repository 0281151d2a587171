"""Refuses the use of a client in another event loop or process than the one that started it.

A client's tasks run in the loop that started it. A call that awaited them in another loop (another thread's, or that of a
later `asyncio.run`) would wait indefinitely. A forked child has a copy of the client's memory, but neither its connections
nor gRPC's threads.
"""

from __future__ import annotations

import asyncio
import os

from fencepost_proto.protocol.errors import InvalidRequest

_forks = 0  # between the process that imported this and this one; a call of os.getpid() is one of the system


def _forked() -> None:
    global _forks  # noqa: PLW0603  # of the process
    _forks += 1


if hasattr(os, "register_at_fork"):  # where processes fork at all
    os.register_at_fork(after_in_child=_forked)


class LoopGuard:
    """`bind` it when the client starts, `check` it where the client is used. `name`: the kind of client, for messages."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0  # for the message
        self._forks = 0

    def bind(self) -> None:
        """The client belongs to this event loop and process from now on."""
        self._loop, self._pid, self._forks = asyncio.get_running_loop(), os.getpid(), _forks

    @property
    def forked(self) -> bool:
        """This process is a forked child of the one that started the client."""
        return self._loop is not None and _forks != self._forks

    def check(self) -> None:
        """Raises InvalidRequest in another event loop or process than that of `bind`; before `bind`, in none."""
        if self._loop is None:
            return
        if self.forked:
            raise InvalidRequest(
                f"the {self._name} was started in process {self._pid} and this is process {os.getpid()}, forked from it: "
                "start a client in each process"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise InvalidRequest(
                f"the {self._name} was started in another event loop: use it in the one that started it, or hand work "
                "over with asyncio.run_coroutine_threadsafe"
            )
