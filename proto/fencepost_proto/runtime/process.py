"""The life of a process, from its command line to its exit code. The broker and the controller are such processes.

It reads its configuration, takes hold of its data folder, starts its component, and announces that in process.json. SIGTERM
and SIGINT are a clean shutdown. Exit codes:

    0   after a clean shutdown
    2   where it cannot run as it is configured (the configuration, the port, the data folder, …), with one line on
        standard error that says why
    65  of a controller whose store has gone back: brokers know newer metadata. 'fencepost controller recover' repairs it
    70  an invariant was violated: the process exits without flushing.

In the data folder:

``.lock``
    Held by the process that runs on the folder: two never write one.
``process.json``
    The process's id, addresses, and kind; written once it listens, so a process that sees it may stop this one cleanly.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import io
import json
import logging
import os
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Generic, Protocol, TextIO, TypeVar

from fencepost_proto.protocol.errors import StorageError
from fencepost_proto.runtime.config import ConfigError, load, settings_help
from fencepost_proto.runtime.event_loop import new_event_loop
from fencepost_proto.runtime.failure import Failure
from fencepost_proto.runtime.standard_streams import ensure_standard_streams

EXIT_CANNOT_RUN: Final = 2
EXIT_WENT_BACK: Final = 65
EXIT_FAULT: Final = 70
LONG_COLLECTION_S: Final = 0.003
COLLECTION_THRESHOLDS: Final = (700, 10, 3)  # a full collection after some 25,000 new objects: a few milliseconds
LOCK_FILE: Final = ".lock"
PROCESS_FILE: Final = "process.json"

log = logging.getLogger(__name__)


class ProcessConfig(Protocol):
    """What every process's configuration has; see `fencepost_proto.runtime.config`."""

    @property
    def data_dir(self) -> str: ...

    @property
    def log_level(self) -> str: ...


class Component(Protocol):
    """What runs in the process: made, started and stopped once, inside one running event loop."""

    failure: Failure

    @property
    def address(self) -> str:
        """host:port, once started."""
        ...

    @property
    def metrics_address(self) -> str:
        """host:port where it hands out its metrics, once started; empty: nowhere."""
        ...

    async def start(self) -> None:
        """Returns when it listens. Whatever it raises, `stop` may be called."""
        ...

    async def stop(self, clean: bool) -> None:
        """End every part. With `clean`, lose nothing; without, as much like a kill as a running process can."""
        ...


C = TypeVar("C", bound=ProcessConfig)


@dataclass(frozen=True, slots=True)
class Program(Generic[C]):
    """One kind of process."""

    package: str
    kind: str
    description: str
    example: str  # of a configuration
    config: type[C]
    id_of: Callable[[C], int] | None  # None: there is only one of the kind
    make: Callable[[C], Component]  # called inside the running event loop
    cannot_start: tuple[
        type[Exception], ...
    ] = ()  # expected errors of `make` and `start`, beside the disk's and the port's
    refusals: tuple[
        type[Exception], ...
    ] = ()  # expected errors at any time: others will not have it as it is configured
    exit_codes: tuple[tuple[type[Exception], int], ...] = ()  # the same, each with an exit code of its own

    def label(self, config: C) -> str:
        return self.kind if self.id_of is None else f"{self.kind}={self.id_of(config)}"

    def cannot_run(self, ending: Ending) -> bool:
        """Its surroundings are at fault, not the process."""
        cannot_start = (*self.cannot_start, StorageError, OSError)
        of_its_own = tuple(kind for kind, _ in self.exit_codes)
        return isinstance(ending.error, (*self.refusals, *of_its_own)) or (
            not ending.had_started and isinstance(ending.error, cannot_start)
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """How a component's life ended."""

    error: BaseException | None  # None: it was asked to
    had_started: bool


async def live(component: Component, asked_to_stop: asyncio.Event, announce: Callable[[], None]) -> Ending:
    """Start the component, `announce` it, and let it run until it is asked to stop or fails.

    Asked to, it is stopped, cleanly unless it had not started yet. After a failure it is left as it is.
    """
    had_started = False

    async def run() -> None:
        nonlocal had_started
        await component.start()
        announce()
        had_started = True  # in one step with the announcement
        await component.failure.wait()

    loop = asyncio.get_running_loop()
    running = loop.create_task(run())
    stopping = loop.create_task(asked_to_stop.wait())
    await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not running.done():
        running.cancel()
        await asyncio.wait([running])
    error = None if running.cancelled() else running.exception()
    if error is None:
        error = await _stop(component, clean=had_started)
    while isinstance(error, BaseExceptionGroup):  # logs are recovered side by side
        error = error.exceptions[0]
    return Ending(error, had_started)


async def _stop(component: Component, clean: bool) -> BaseException | None:
    """What went wrong in it."""
    try:
        await component.stop(clean)
        if component.failure.happened:
            await component.failure.wait()
    except Exception as error:  # noqa: BLE001  # whatever it is, it decides how the process ends
        return error
    return None


# ---- A real process ----


def main(program: Program[C]) -> int:
    """Run the program that the command line configures. The exit code."""
    ensure_standard_streams()
    parser = argparse.ArgumentParser(
        prog=f"python -m {program.package}",
        description=f"{program.description} It logs to standard error; SIGTERM shuts it down cleanly.",
        epilog=f"settings:\n{settings_help(program.config)}\n\nexample of a configuration:\n{program.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG.toml", help=f"the {program.kind}'s configuration, a flat TOML file")
    path = parser.parse_args().config
    try:
        config = load(program.config, path)
    except ConfigError as error:
        return _refuse(program, error)
    log_to_standard_error(config.log_level, program.label(config))
    os.umask(0o077)  # no other user may read what this process writes
    try:
        lock = hold_folder(config.data_dir)
    except OSError as error:
        return _refuse(program, error)
    _allow_open_files()
    gc.freeze()  # what the imports made stays permanently: collections need not look at it
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(_serve(program, config))
    finally:
        os.close(lock)


class Event(logging.LogRecord):
    """A record with what a line shows. The rest (source file, thread, process) costs more than writing the line."""

    def __init__(  # noqa: PLR0917  # as logging calls it
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: tuple[object, ...] | Mapping[str, object] | None,
        exc_info: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None] | None,
        func: str | None = None,
        sinfo: str | None = None,
        **_: object,
    ) -> None:
        self.name, self.msg, self.args, self.exc_info, self.stack_info = name, str(msg), args, exc_info, sinfo
        if isinstance(args, tuple) and len(args) == 1 and isinstance(args[0], Mapping) and args[0]:
            self.args = args[0]  # "%(name)s"
        self.levelno, self.levelname = level, logging.getLevelName(level)
        self.pathname, self.lineno, self.funcName = pathname, lineno, func or ""
        self.exc_text: str | None = None
        self.created = time.time()


class LineHandler(logging.StreamHandler[TextIO]):
    """The stream writes each line out by itself, so nothing is to be flushed behind it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(self.format(record) + self.terminator)
        except Exception:  # noqa: BLE001  # as logging's own handlers have it
            self.handleError(record)


class LineFormatter(logging.Formatter):
    """`<time> <level> <label> <name> <message>`. A restart writes thousands of lines in a second: its text is made once.

    Its handler calls it under a lock.
    """

    def __init__(self, label: str) -> None:
        super().__init__()
        self._label = label
        self._second = 0
        self._time = ""

    def format(self, record: logging.LogRecord) -> str:
        second, fraction = divmod(record.created, 1)
        if second != self._second or not self._time:
            self._second, self._time = int(second), time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        head = f"{self._time},{int(fraction * 1000):03d} {record.levelname} {self._label} {record.name}"
        line = f"{head} {record.getMessage()}"
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return line


def log_to_standard_error(level: str, label: str) -> None:
    """A line for each event. What no line shows (thread, process, source line) is not looked up."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(line_buffering=True)
    handler = LineHandler(sys.stderr)
    handler.setFormatter(LineFormatter(label))
    logging.basicConfig(level=level, handlers=[handler])
    logging.setLogRecordFactory(Event)
    logging._srcfile = None  # as the logging HOWTO has it, "Optimization"


def hold_folder(data_dir: str) -> int:
    """Make the folder, and lock it for as long as the descriptor stays open."""
    os.makedirs(data_dir, mode=0o700, exist_ok=True)
    _close_to_others(data_dir)
    descriptor = os.open(os.path.join(data_dir, LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OSError(f"data folder {data_dir!r} is in use by another process") from None
    return descriptor


def freeze_after_long_collections(soon: Callable[[Callable[[], object]], object]) -> None:
    """Keep collections of garbage from holding the event loop: what has survived a long one is not looked at again.

    A full collection goes through everything that is alive: with 50,000 producers in memory, tens of milliseconds, at each
    growth by a quarter. What survives is frozen, and `soon` (a loop's `call_soon_threadsafe`) has the rest collected once
    more, for the interpreter measures growth by what the last collection has left. So each looks at what came since the
    one before. Cycles that are frozen and become garbage later are never freed; values and logs have none.
    """
    began = 0.0

    def watch(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if info["generation"] < 2:
            return
        if phase == "start":
            began = time.perf_counter()
        elif time.perf_counter() - began > LONG_COLLECTION_S:
            gc.freeze()
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to end
                soon(gc.collect)

    gc.callbacks.append(watch)
    gc.set_threshold(*COLLECTION_THRESHOLDS)


def _close_to_others(data_dir: str) -> None:
    """Only the owner of the data may read them; what is inside is then closed, too, whatever its own mode."""
    mode = stat.S_IMODE(os.stat(data_dir).st_mode)
    if not mode & 0o077:
        return
    try:
        os.chmod(data_dir, 0o700)
    except OSError as error:
        log.warning("data folder is open to others directory=%s mode=%04o error=%s", data_dir, mode, error)
    else:
        log.warning("data folder was open to others, and is closed now directory=%s mode=%04o", data_dir, mode)


def _allow_open_files() -> None:
    """As many as the system lets this process have: of a broker every segment takes three, every connection one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(program: Program[C], config: C) -> int:
    """Until a signal or a fault. The exit code."""
    loop = asyncio.get_running_loop()
    freeze_after_long_collections(loop.call_soon_threadsafe)
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    try:
        component = program.make(config)
    except Exception as error:  # noqa: BLE001  # whatever it is, it decides how the process ends
        return _exit_code(program, Ending(error, had_started=False))

    def started() -> None:
        gc.freeze()
        gc.enable()
        _announce(program, config, component)

    gc.disable()  # the logs that a start opens stay: with thousands, collections would take a third of it to find no garbage
    ending = await live(component, asked_to_stop, started)
    if program.cannot_run(ending):
        await _stop(component, clean=False)
    return _exit_code(program, ending)


def _exit_code(program: Program[C], ending: Ending) -> int:
    """Does not return after a fault."""
    if ending.error is None:
        return 0
    if program.cannot_run(ending):
        return _refuse(program, ending.error)
    log.critical("stopping at once: %s", ending.error, exc_info=ending.error)
    logging.shutdown()
    os._exit(EXIT_FAULT)


def _announce(program: Program[C], config: C, component: Component) -> None:
    """For programs on this machine; it need not outlive the process, so it is not synced."""
    content = {
        "pid": os.getpid(),
        "address": component.address,
        "kind": program.kind,
        "id": 0 if program.id_of is None else program.id_of(config),
    }
    if component.metrics_address:
        content["metrics_address"] = component.metrics_address
    path = os.path.join(config.data_dir, PROCESS_FILE)
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(f"{path}.tmp", path)


def _refuse(program: Program[C], reason: BaseException) -> int:
    print(f"{program.package}: {reason}", file=sys.stderr)
    return next((code for kind, code in program.exit_codes if isinstance(reason, kind)), EXIT_CANNOT_RUN)
