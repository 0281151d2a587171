"""A client's program as a child process whose lines are read as they come."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fencepost_testing.failures import CommandFailed

OnLine = Callable[[str, list[str], float], None]
"""(first word, other words, when it was read by time.time())"""

_END_TIMEOUT_S = 20.0
_STATUSES_OF_SIGTERM = (0, 128 + signal.SIGTERM)  # a JVM ends so, after its shutdown hooks
_MAX_LINE_BYTES = 1024 * 1024


# Linux: the program gets SIGKILL when its parent is gone, however that ended. A preexec_fn would meet gRPC's threads.
WITH_PARENT = (
    sys.executable,
    "-c",
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); os.execvp(sys.argv[1], sys.argv[1:])",
)


class Program:
    """Runs from `async with` to its end; what is still running then is killed."""

    def __init__(self, command: Sequence[str], log: Path, on_line: OnLine) -> None:
        self._command = command
        self._log = log
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *WITH_PARENT,
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_MAX_LINE_BYTES,
                start_new_session=True,
                cwd=Path(__file__).parent.parent.parent,
            )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._process is not None:
            await self._process.wait()

    def kill(self) -> None:
        """SIGKILL to it and its children."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def terminate(self) -> None:
        """SIGTERM, and wait until it has said all that it had to say. Raises CommandFailed where it does not end."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self.wait(_END_TIMEOUT_S, _STATUSES_OF_SIGTERM)

    async def wait(self, timeout_s: float, statuses: Sequence[int] = (0,)) -> None:
        """Until it has ended by itself. Raises CommandFailed where it does not, or with another status."""
        assert self._process is not None
        assert self._reading is not None
        try:
            async with asyncio.timeout(timeout_s):
                await self._reading
                status = await self._process.wait()
        except TimeoutError:
            raise CommandFailed(f"{self._command[:3]} has not ended within {timeout_s:g} s; see {self._log}") from None
        if status not in statuses:
            raise CommandFailed(f"{self._command[:3]} ended with status {status}; see {self._log}")

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            words = line.decode(errors="replace").split()
            if words:
                self._on_line(words[0], words[1:], time.time())
