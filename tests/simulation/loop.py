"""An event loop with virtual time, whose every step follows from a seed.

Theory of operation. Callbacks run in the order in which they were scheduled; when none is ready, time jumps to the next
timer (timers of one moment run in the order of their making). Nothing waits for the real world: `run_in_executor` and
`asyncio.to_thread` call the function on the loop itself, a little later in virtual time, and deliver its result a little
later still.

Every callback carries a context, and the context variable `current_process` in it names the simulated process that it
belongs to. A callback of a paused process is held back until the process resumes; one of a dead process is dropped. So
a whole process can be killed or frozen between any two of its callbacks without a line of its code knowing: no
`finally`, no `except` of it runs any more.

Determinism beyond order: tasks hash by their number, not by their address, because asyncio itself (TaskGroup) iterates
sets of tasks; and the caller keeps the garbage collector off during a run (`collector_off`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import random
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from tests.simulation.streams import ByteStreams

T = TypeVar("T")

MAX_CALLBACKS_AT_ONE_MOMENT = 200_000  # more than this without time moving: someone spins
THREAD_DELAY_S = 0.002  # at most, before a thread's function runs, and again before its result arrives; by default
_MIN_CANCELLED_TIMERS = 1_000  # from here on, cancelled timers are swept when they are the majority


class Owner(Protocol):
    """Whoever a callback belongs to, as the loop sees it."""

    @property
    def running(self) -> bool: ...

    def hold(self, handle: SimHandle) -> None:
        """Take a callback that is due while the owner does not run."""
        ...

    def adopt(self, task: SimTask[Any]) -> None:
        """Know of a task of the owner's, and keep it from being collected."""
        ...


current_process: ContextVar[Owner | None] = ContextVar("current_process", default=None)


class Deadlock(Exception):
    """Nothing is ready and no timer is set: everyone waits for someone else."""


class Runaway(Exception):
    """Callbacks follow upon callbacks and time stands still."""


class ProcessEnded(BaseException):
    """Raised by a handle (disk, network) of a process that is dead. No one catches it, and no one needs to."""


class SimHandle:
    """One scheduled callback. Stands in for asyncio.Handle."""

    __slots__ = ("_args", "_callback", "_cancelled", "_context")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None) -> None:
        self._callback: Callable[..., object] | None = callback
        self._args = args
        self._context = copy_context() if context is None else context
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = None
        self._args = ()

    def cancelled(self) -> bool:
        return self._cancelled


class SimTimer(SimHandle):
    """A callback for later. Stands in for asyncio.TimerHandle."""

    __slots__ = ("_loop", "_when")

    def __init__(
        self,
        loop: SimLoop,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context | None,
    ) -> None:
        super().__init__(callback, args, context)
        self._loop = loop
        self._when = when

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        if not self._cancelled:
            self._loop.cancelled_timers += 1
            super().cancel()


class SimTask(asyncio.Task[T]):
    """A task that hashes by its number, so that sets of tasks iterate alike in every run."""

    def __init__(self, number: int, coro: Coroutine[Any, Any, T], **kwargs: Any) -> None:
        self.number = number
        super().__init__(coro, **kwargs)
        self._log_destroy_pending = False  # a dead process leaves pending tasks behind

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimFuture(asyncio.Future[T]):
    """A future that hashes by its number, as tasks do: clients wait for sets of futures, and look at each that is done."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimLoop(asyncio.BaseEventLoop):
    """The loop. `failures` collects what asyncio would only log: exceptions that no one took."""

    def __init__(self, chance: random.Random, start_s: float = 0.0) -> None:
        super().__init__()
        self.failures: list[str] = []
        self.callbacks_run = 0
        self.thread_delay_s = THREAD_DELAY_S
        self.cancelled_timers = 0
        self.byte_streams: ByteStreams | None = None  # of the world's network
        self._random = chance
        self._now = start_s
        self._timers: list[tuple[float, int, SimTimer]] = []
        self._timer_number = 0
        self._task_number = 0
        self._future_number = 0
        self._due: list[SimHandle] = []
        self._at_this_moment = 0
        self.set_debug(False)
        self.set_exception_handler(self._note_failure)

    # ---- Time and order ----

    def time(self) -> float:
        return self._now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> SimHandle:
        handle = SimHandle(callback, args, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> SimTimer:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> SimTimer:
        timer = SimTimer(self, when, callback, args, context)
        self._timer_number += 1
        heapq.heappush(self._timers, (when, self._timer_number, timer))
        return timer

    def _run_once(self) -> None:
        ready = self._ready  # type: ignore[attr-defined]
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            self._advance()
        for _ in range(len(ready)):
            handle: SimHandle = ready.popleft()
            callback = handle._callback
            if callback is None:
                continue
            context = handle._context
            owner = context.get(current_process)
            if owner is not None and not owner.running:
                owner.hold(handle)
                continue
            self.callbacks_run += 1
            self._at_this_moment += 1
            try:
                context.run(callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except ProcessEnded:
                pass
            except Exception as error:  # noqa: BLE001 - as asyncio: a callback's error must not end the loop
                self.call_exception_handler({"message": f"exception in callback {callback!r}", "exception": error})
        if self._at_this_moment > MAX_CALLBACKS_AT_ONE_MOMENT:
            raise Runaway(f"{self._at_this_moment} callbacks ran at {self._now:.6f} s and time did not move")

    def _advance(self) -> None:
        timers = self._timers
        if self.cancelled_timers > _MIN_CANCELLED_TIMERS and self.cancelled_timers * 2 > len(timers):
            self._timers = timers = [entry for entry in timers if entry[2]._callback is not None]
            heapq.heapify(timers)
            self.cancelled_timers = 0
        while timers and timers[0][2]._callback is None:
            heapq.heappop(timers)
            self.cancelled_timers -= 1
        if not timers:
            raise Deadlock(f"at {self._now:.6f} s nothing is ready and no timer is set")
        when = timers[0][0]
        if when > self._now:
            self._now = when
            self._at_this_moment = 0
        ready = self._ready  # type: ignore[attr-defined]
        while timers and timers[0][0] <= self._now:
            ready.append(heapq.heappop(timers)[2])

    def resume(self, handles: list[SimHandle]) -> None:
        """Put back, in order, what an owner held while it was paused."""
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def forget(self) -> None:
        """Drop all that is scheduled."""
        self._ready.clear()  # type: ignore[attr-defined]
        self._timers.clear()

    # ---- Tasks and threads ----

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: object = None, context: Context | None = None
    ) -> SimTask[T]:
        self._task_number += 1
        name = f"task-{self._task_number}" if name is None else str(name)
        task = SimTask(self._task_number, coro, loop=self, name=name, context=context)
        owner = current_process.get() if context is None else context.get(current_process)
        if owner is not None:
            owner.adopt(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        self._future_number += 1
        return SimFuture(self._future_number, self)

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        if executor is not None:
            raise ValueError("the simulation runs only the default executor: run_in_executor(None, …)")
        future: asyncio.Future[T] = self.create_future()

        def deliver(result: T | None, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def run() -> None:  # a thread that has begun goes on, even if no one waits for it any more
            result, error = None, None
            try:
                result = func(*args)
            except Exception as raised:  # noqa: BLE001 - goes to whoever awaits it, as with a real executor
                error = raised
            self.call_later(self._random.random() * self.thread_delay_s, deliver, result, error)

        self.call_later(self._random.random() * self.thread_delay_s, run)
        return future

    # ---- Byte streams ----

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], host: str, port: int, **_: object
    ) -> asyncio.AbstractServer:
        return await self._streams().create_server(protocol_factory, host, port)

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], host: str, port: int, **_: object
    ) -> tuple[asyncio.Transport, Any]:
        return await self._streams().create_connection(protocol_factory, host, port)

    def _streams(self) -> ByteStreams:
        if self.byte_streams is None:
            raise RuntimeError("no network belongs to this loop")
        return self.byte_streams

    # ---- What the base class asks for ----

    def _process_events(self, event_list: object) -> None: ...

    def _write_to_self(self) -> None: ...

    def _timer_handle_cancelled(self, handle: object) -> None: ...

    def _note_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        owner = current_process.get()
        if owner is not None and not owner.running:
            return  # the last breath of a dead process
        error = context.get("exception")
        self.failures.append(f"{context['message']}: {error!r}" if error is not None else str(context["message"]))


@contextlib.contextmanager
def collector_off() -> Generator[None]:
    """No garbage collection inside: it would run finalisers at moments that depend on the machine's memory."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def close_coroutines(find: Callable[[], Iterable[SimTask[Any]]], context: Context) -> None:
    """End what dead processes left pending, without running it as tasks: each coroutine is closed where it stands.

    Their `finally` blocks run now, against handles that are dead; whatever they raise is of no interest. They may begin
    tasks of their own, in `context`, so `find` is asked
    for tasks until there are no new ones.
    """
    closed: set[int] = set()
    while tasks := [task for task in find() if task.number not in closed]:
        for task in tasks:
            closed.add(task.number)
            if task.done():
                continue
            coroutine = task.get_coro()
            for _ in range(20):  # an `await` in a `finally` refuses to end; ask again
                try:
                    context.run(coroutine.close)
                except BaseException:  # noqa: BLE001 - see the docstring
                    continue
                break
