"""A simulated process: something that can be killed, paused and resumed between any two of its callbacks.

A process owns a context in which the loop's `current_process` names it; all that its code schedules inherits that
context, and the loop asks `running` before each callback. What is pending when a process dies stays referenced until
the world ends, so that no finaliser runs early.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, TypeVar

from tests.simulation.loop import ProcessEnded, SimHandle, SimLoop, SimTask, current_process

T = TypeVar("T")


class State(enum.Enum):
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"  # exited by itself
    KILLED = "killed"


class SimProcess:
    """One incarnation of one component on one node."""

    def __init__(self, loop: SimLoop, node: str, chance: random.Random, incarnation: int = 1) -> None:
        self.loop = loop
        self.node = node
        self.incarnation = incarnation
        self.random = chance
        self.state = State.RUNNING
        self.running = True
        self.tasks: list[SimTask[Any]] = []
        self._sweep_at = 64
        self.on_end: list[Callable[[], None]] = []  # called once, at its end, however it comes
        self._held: list[SimHandle] = []
        self._context = copy_context()
        self._context.run(current_process.set, self)

    def __repr__(self) -> str:
        return f"{self.node}#{self.incarnation}"

    @property
    def alive(self) -> bool:
        return self.state in (State.RUNNING, State.PAUSED)

    def context(self) -> Context:
        """A fresh copy of the process's context, for a callback or task that belongs to it."""
        return self._context.copy()

    def spawn(self, coro: Coroutine[Any, Any, T], name: str | None = None) -> SimTask[T]:
        return self.loop.create_task(coro, name=name, context=self.context())

    def check_alive(self) -> None:
        if not self.alive:
            raise ProcessEnded(repr(self))

    # ---- Owner, as the loop sees it ----

    def hold(self, handle: SimHandle) -> None:
        if self.state is State.PAUSED:
            self._held.append(handle)

    def adopt(self, task: SimTask[Any]) -> None:
        self.tasks.append(task)
        if len(self.tasks) >= self._sweep_at:
            self.sweep()

    def sweep(self) -> None:
        """Let go of tasks that are done. An error in one that no one took becomes a failure of the loop's."""
        self.tasks = [task for task in self.tasks if not task.done()]
        self._sweep_at = 2 * len(self.tasks) + 64

    # ---- What may happen to it ----

    def pause(self) -> None:
        if self.state is State.RUNNING:
            self.state = State.PAUSED
            self.running = False

    def resume(self) -> None:
        if self.state is State.PAUSED:
            self.state = State.RUNNING
            self.running = True
            held, self._held = self._held, []
            self.loop.resume(held)

    def kill(self) -> None:
        self._end(State.KILLED)

    def exit(self) -> None:
        """The process's main function has returned."""
        self._end(State.ENDED)

    def _end(self, state: State) -> None:
        if not self.alive:
            return
        self.state = state
        self.running = False
        self._held = []
        callbacks, self.on_end = self.on_end, []
        for callback in callbacks:
            callback()
