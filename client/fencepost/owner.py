"""Which event loop and process a client belongs to, so that another one meets an error and not silence.

A client's tasks run in the loop that started it. Whoever awaits its answers in another loop (another thread's, or that of
a later `asyncio.run`) would wait for ever, and a forked child has the client's memory, and neither its threads nor its
connections: gRPC's own threads are not copied by a fork.
"""

from __future__ import annotations

import asyncio
import os

from fencepost_proto.protocol.errors import InvalidRequest


class Owner:
    """`take` when the client starts; `check` where it is used. `name`: the kind of client, for messages."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def take(self) -> None:
        self._loop, self._pid = asyncio.get_running_loop(), os.getpid()

    @property
    def forked(self) -> bool:
        """This is a child of the process that has started the client."""
        return self._loop is not None and os.getpid() != self._pid

    def check(self) -> None:
        """Raises InvalidRequest in another event loop or process. Before the start anything goes."""
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
