"""A simulated world: one loop, one network, machines with disks, and the processes that run on them.

Everything random in it comes from one seed, through a generator of its own for each part, so that a part that draws
more numbers does not change what the others draw.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import warnings
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from fencepost_proto.runtime.host import Host
from tests.simulation.disk import MountedDisk, SimDisk
from tests.simulation.loop import SimLoop, SimTask, close_coroutines, current_process
from tests.simulation.network import Network
from tests.simulation.process import SimProcess
from tests.simulation.streams import ByteStreams
from tests.simulation.wire import SimWire

T = TypeVar("T")

EPOCH_MS = 1_700_000_000_000  # what wall clocks show when the world begins


@dataclass(slots=True)
class Machine:
    """One node: what stays when its process dies."""

    name: str
    disk: SimDisk
    wall_clock_offset_ms: int = 0
    process: SimProcess | None = None
    incarnations: int = 0
    powered: bool = True
    ended: list[SimProcess] = field(default_factory=list)  # kept, so that nothing of them is finalised early


class World:
    """Make it, `run` the story, `close` it."""

    def __init__(self, seed: int | str) -> None:
        self.seed = seed
        self.carrier: Literal["grpc", "lean", "mixed"] = "grpc"  # of all processes that start from now on
        self.loop = SimLoop(self.chance("loop"))
        self.network = Network(self.loop, self.chance("network"))
        self.loop.byte_streams = ByteStreams(self.network)
        self.machines: dict[str, Machine] = {}
        self.trace: list[str] = []
        self.crashes: list[tuple[SimProcess, Exception]] = []  # processes whose main function raised
        self.unforeseen: list[str] = []  # what processes logged with a traceback, and went on
        self._error: Exception | None = None
        self._stories: list[SimTask[Any]] = []
        self._logs = _TraceHandler(self)
        self._closing = False
        root = logging.getLogger()
        self._log_level = root.level
        root.addHandler(self._logs)
        root.setLevel(logging.INFO)

    def chance(self, part: str) -> random.Random:
        """The generator of one part of the world."""
        return random.Random(f"{self.seed}/{part}")

    @property
    def now(self) -> float:
        return self.loop.time()

    def tell(self, who: str, what: str) -> None:
        """One line of the trace."""
        if not self._closing:
            self.trace.append(f"{self.loop.time():12.6f} {who:<12} {what}")

    # ---- Machines and processes ----

    def _carrier_of(self, name: str, incarnation: int) -> Literal["grpc", "lean"]:
        """By which one a process calls others. It serves both."""
        if self.carrier != "mixed":
            return self.carrier
        return self.chance(f"carrier/{name}/{incarnation}").choice(("grpc", "lean"))

    def machine(self, name: str) -> Machine:
        machine = self.machines.get(name)
        if machine is None:
            machine = Machine(name, SimDisk(name, self.chance(f"disk/{name}")))
            machine.disk.clock = lambda: self.wall_clock_ms(machine)
            self.machines[name] = machine
        return machine

    def wall_clock_ms(self, machine: Machine) -> int:
        return EPOCH_MS + round(self.loop.time() * 1000) + machine.wall_clock_offset_ms

    def start(self, name: str, main: Callable[[Host, MountedDisk], Coroutine[Any, Any, None]]) -> SimProcess:
        """Run `main` as a new process on machine `name`. When it returns or raises, the process has ended."""
        machine = self.machine(name)
        if machine.process is not None and machine.process.alive:
            raise RuntimeError(f"{machine.process!r} still runs")
        if machine.process is not None:
            machine.ended.append(machine.process)
        machine.incarnations += 1
        chance = self.chance(f"process/{name}/{machine.incarnations}")
        process = SimProcess(self.loop, name, chance, machine.incarnations)
        machine.process = process
        process.on_end.append(lambda: self.network.process_ended(process, power_failure=not machine.powered))
        host = Host(
            SimWire(self.network, process, self._carrier_of(name, machine.incarnations)),
            lambda: self.wall_clock_ms(machine),
            chance,
        )

        async def run() -> None:
            try:
                await main(host, machine.disk.mount(process))
            except Exception as error:  # noqa: BLE001 - whatever ends a process is for the world to judge
                if self._closing:
                    return
                self.crashes.append((process, error))
                self.tell(repr(process), f"crashed: {error!r}")
            process.exit()

        process.spawn(run(), name=f"main {process!r}")
        return process

    def kill(self, name: str) -> None:
        """SIGKILL: the process is gone between two of its callbacks; its machine goes on."""
        process = self.machines[name].process
        if process is not None:
            process.kill()

    def pause(self, name: str) -> None:
        process = self.machines[name].process
        if process is not None:
            process.pause()
            self.network.paused_or_resumed()

    def resume(self, name: str) -> None:
        process = self.machines[name].process
        if process is not None:
            process.resume()
            self.network.paused_or_resumed()

    def power_failure(self, name: str) -> None:
        """The machine is off: its process is gone, unsynced data may be, and no one is told."""
        machine = self.machines[name]
        machine.powered = False
        self.network.power_off(name)
        self.kill(name)
        machine.disk.lose_power()

    def power_on(self, name: str) -> None:
        self.machines[name].powered = True
        self.network.power_on(name)

    # ---- Running ----

    def failures(self) -> list[str]:
        """What no one handled, or no one foresaw, anywhere in the world, and every process that ended with an error."""
        for machine in self.machines.values():
            if machine.process is not None and machine.process.alive:
                machine.process.sweep()
        crashes = (f"{process!r} crashed: {error!r}" for process, error in self.crashes)
        return [*self.loop.failures, *self.unforeseen, *crashes]

    def stop(self, error: Exception) -> None:
        """End the run, wherever it is: `run` raises `error`."""
        if self._error is None:
            self._error = error
            self.loop.stop()

    def run(self, story: Coroutine[Any, Any, T]) -> T:
        task = self.loop.create_task(story)
        self._stories.append(task)
        try:
            result = self.loop.run_until_complete(task)
        except RuntimeError:
            if self._error is not None:
                raise self._error from None
            raise
        if self._error is not None:
            raise self._error
        return result

    def close(self) -> None:
        """Let go of everything, quietly: nothing of the world runs after this."""
        root = logging.getLogger()
        root.removeHandler(self._logs)
        root.setLevel(self._log_level)
        logging.disable(logging.CRITICAL)  # what coroutines log as they are closed is of no interest
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        asyncio._set_running_loop(self.loop)
        try:
            with warnings.catch_warnings(action="ignore"):
                self._close()
        finally:
            asyncio._set_running_loop(None)
            sys.unraisablehook = hook
            logging.disable(logging.NOTSET)

    def _close(self) -> None:
        self._closing = True
        for machine in self.machines.values():
            if machine.process is not None:
                machine.process.kill()
                machine.ended.append(machine.process)
            for process in machine.ended:
                close_coroutines(lambda process=process: process.tasks, process.context())  # type: ignore[misc]
        close_coroutines(lambda: self._stories, copy_context())
        self.loop.forget()
        self.loop.close()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _TraceHandler(logging.Handler):
    """Log lines of processes become lines of the trace."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        owner = current_process.get()
        if not isinstance(owner, SimProcess) or owner.loop is not self._world.loop:
            return
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
            self._world.unforeseen.append(f"{owner!r} {text}")
        if record.name.startswith("fencepost"):  # aiokafka has loops of its own
            self._world.network.rates.note(repr(owner), f"logs {record.msg!r}")
        self._world.tell(repr(owner), text)
