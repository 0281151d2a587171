"""What travels over a link with faults: later, slower, not at all, but never damaged and always in order.

A direction of a call, or of a connection, has a line. While no rule concerns it, what is sent passes at once. Otherwise each
message gets a time at which it may arrive: by the delay, and by when what is before it has passed at the allowed rate; and
it waits until the direction is whole. What is sent is taken at once, up to MAX_WAITING, as a network does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

from fencepost_testing.faults.inside import FaultsInside
from fencepost_testing.faults.rules import LinkAction

MAX_WAITING: Final = 1_024  # messages on their way in one direction of a call: above that its sender waits
MAX_HELD_BYTES: Final = 1024 * 1024  # of a connection, likewise

M = TypeVar("M")


class Line:
    """One direction: from `sender` to `receiver`."""

    def __init__(self, faults: FaultsInside, sender: str, receiver: str) -> None:
        self.faults = faults
        self.sender = sender
        self.receiver = receiver
        self._free_at = 0.0  # when what was sent so far has passed
        self._due_at = 0.0  # of the last message

    @property
    def has_rules(self) -> bool:
        return self.faults.has_links and bool(self.faults.link_rules(self.sender, self.receiver))

    @property
    def is_cut(self) -> bool:
        return self.has_rules and any(
            posted.rule.action is LinkAction.CUT for posted in self.faults.link_rules(self.sender, self.receiver)
        )

    def send(self, size: Callable[[], int]) -> float:
        """A message is sent: the loop's time at which it may arrive, if it is not held back by a cut."""
        now = asyncio.get_running_loop().time()
        due = now
        for posted in self.faults.link_rules(self.sender, self.receiver):
            rule = posted.rule
            if rule.action is LinkAction.RESET or not self.faults.is_chosen(rule.limits):
                continue
            if not self.faults.fire(posted.posted, f"{self.sender} to {self.receiver}", every=False):
                continue
            if rule.action is LinkAction.DELAY:
                due = max(due, now + self.faults.delay_s(rule))
            elif rule.action is LinkAction.LIMIT:
                self._free_at = max(now, self._free_at) + size() / rule.bytes_per_second
                due = max(due, self._free_at)
        self._due_at = max(self._due_at, due)
        return self._due_at

    async def arrive(self, due: float) -> None:
        """Return when what was to arrive then arrives."""
        while self.has_rules:
            left_s = due - asyncio.get_running_loop().time()
            if left_s > 0:
                await self.faults.changed(left_s)
            elif self.is_cut:
                await self.faults.changed()
            else:
                return

    async def carry(self, size: Callable[[], int]) -> None:
        """One message by itself, from its sending to its arrival."""
        if self.has_rules:
            await self.arrive(self.send(size))


class Incoming(Generic[M]):
    """The messages that one end of a call receives. `receive` raises what ends it."""

    def __init__(self, line: Line, receive: Callable[[], Awaitable[M]]) -> None:
        self._line = line
        self._receive = receive
        self._waiting: deque[tuple[float, M | None, BaseException | None]] = deque()
        self._changed = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def next(self) -> M:
        if self._reader is None:
            message = await self._receive()
            if not self._line.has_rules:
                return message
            self._put(message, None)
            self._reader = asyncio.get_running_loop().create_task(self._read_on())
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        due, waiting, error = self._waiting[0]
        await self._line.arrive(due)
        self._changed.set()
        if error is not None:  # it stays: so does every later look
            raise error
        self._waiting.popleft()
        assert waiting is not None
        return waiting

    async def _read_on(self) -> None:
        while True:
            while len(self._waiting) >= MAX_WAITING:
                self._changed.clear()
                await self._changed.wait()
            try:
                message = await self._receive()
            except BaseException as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                self._put(None, error)
                return
            self._put(message, None)

    def _put(self, message: M | None, error: BaseException | None) -> None:
        self._waiting.append((self._line.send(lambda: _size_of(message)), message, error))
        self._changed.set()

    def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()


class Outgoing(Generic[M]):
    """The messages that one end of a call sends."""

    def __init__(self, line: Line, send: Callable[[M], Awaitable[None]]) -> None:
        self._line = line
        self._send = send
        self._waiting: deque[tuple[float, M]] = deque()
        self._changed = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._error: BaseException | None = None

    async def send(self, message: M) -> None:
        """Raises what `send` raises, of this message or of one before it."""
        if self._writer is None:
            if not self._line.has_rules:
                await self._send(message)
                return
            self._writer = asyncio.get_running_loop().create_task(self._write_on())
        while len(self._waiting) >= MAX_WAITING and self._error is None:
            await self._wait()
        if self._error is not None:
            raise self._error
        self._waiting.append((self._line.send(lambda: _size_of(message)), message))
        self._changed.set()

    async def flush(self) -> None:
        """Return once all that was sent has left, or cannot any more."""
        while self._waiting and self._error is None:
            await self._wait()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _write_on(self) -> None:
        while True:
            while not self._waiting:
                await self._wait()
            due, message = self._waiting[0]
            await self._line.arrive(due)
            try:
                await self._send(message)
            except BaseException as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                self._error = error
                return
            finally:
                self._changed.set()
            self._waiting.popleft()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.cancel()


def _size_of(message: Any) -> int:
    return int(message.ByteSize()) if hasattr(message, "ByteSize") else 0


class ByteLine:
    """One direction of a connection: its bytes, in the pieces in which they come."""

    def __init__(self, line: Line, deliver: Callable[[Any], None], held: Callable[[int], None]) -> None:
        """`deliver` is given each piece when it arrives, `held` how many bytes wait, whenever that changes."""
        self.held_bytes = 0
        self.line = line
        self._deliver = deliver
        self._held = held
        self._waiting: deque[tuple[float, Any, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def put(self, piece: Any, size: int) -> None:
        if not self._waiting and not self.line.has_rules:
            self._deliver(piece)
            return
        self._waiting.append((self.line.send(lambda: size), piece, size))
        self._hold(size)
        self.go_on()

    def go_on(self) -> None:
        """Deliver what may arrive now; the rules may have changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._waiting:
            due, piece, size = self._waiting[0]
            if self.line.has_rules:
                if due > loop.time():
                    self._timer = loop.call_at(due, self.go_on)
                    return
                if self.line.is_cut:
                    return  # until the rules change
            self._waiting.popleft()
            self._hold(-size)
            self._deliver(piece)

    def _hold(self, change: int) -> None:
        self.held_bytes += change
        self._held(self.held_bytes)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.clear()
