"""Processes that this project started, and how they are recognised.

A pid alone names no process: once its process is gone the number may be another's. So a process is remembered as pid *and*
start time *and* the configuration file on its command line (a forked one has none of its own), and only one that answers to
all of that is ever signalled. A
zombie (ended, not yet waited for by its parent) counts as gone.

On Linux the start time is the kernel's own: clock ticks since the boot with a given boot id. It does not move when the
wall clock is set, as a creation time since 1970 does (psutil issues 2526 and 1724).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import psutil

from fencepost_testing.failures import CommandFailed

# Where the kernel's own start time is not known: the creation time moves with corrections of the wall clock.
_CREATE_TIME_TOLERANCE_S = 2.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STAT_STATE = 0
_STOPPED = ("T", "t")
_STAT_BYTES = 4_096  # more than it ever has: some fifty numbers
_ENDED = ("Z", "X", "x")
_STAT_START_TIME = 19  # of the words behind the command's name in /proc/PID/stat (proc(5), field 22)
_LOOKS_AT_A_NEW_PROCESS = 10
_LOOK_AGAIN_S = 0.002

READY = b"watching\n"  # what a watchdog writes once it can do its work
WATCHDOG_TIMEOUT_S = 20.0
_ENDING_S = 2.0


@dataclass(frozen=True, slots=True)
class NetworkPlace:
    """Where a process runs, when that is not simply this machine at its loopback address: a network namespace, for one."""

    host: str  # the address that it has there
    prefix: tuple[str, ...] = ()  # words before its command line that bring it there
    environment: Mapping[str, str] = field(default_factory=dict)  # added to this process's own


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """One process, over its whole life."""

    pid: int
    create_time_s: float  # of the Unix epoch
    config_file: str  # the last word of its command line; empty: it was forked, and has that of the fork server
    started: str = ""  # "boot id:ticks since that boot"; empty: not known, and create_time_s has to do

    def find(self) -> psutil.Process | None:
        """The running (or stopped) process; None once it has ended."""
        for _ in range(_LOOKS_AT_A_NEW_PROCESS):
            try:
                process = psutil.Process(self.pid)
                if not self._started_as(process):
                    return None
                if process.status() == psutil.STATUS_ZOMBIE:
                    return None
                if not self.config_file:
                    return process
                command_line = process.cmdline()
            except psutil.NoSuchProcess:
                return None
            if command_line:
                return process if command_line[-1] == self.config_file else None
            time.sleep(_LOOK_AGAIN_S)  # the kernel is just starting its program, and shows no command line yet
        return None

    def _started_as(self, process: psutil.Process) -> bool:
        if self.started:
            return start_time(self.pid) == self.started
        return abs(process.create_time() - self.create_time_s) <= _CREATE_TIME_TOLERANCE_S

    def alive(self) -> bool:
        return self.find() is not None

    def goes_on(self) -> bool:
        """`alive` still, of a process that was: it has kept its command line."""
        if self.started:
            return self._kernel_state() not in ("", *_ENDED)
        return self.alive()

    def paused(self) -> bool:
        if self.started:
            return self._kernel_state() in _STOPPED
        process = self.find()
        try:
            return process is not None and process.status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

    def _kernel_state(self) -> str:
        """As /proc/PID/stat has it; empty: it is gone. One look at one file, for this is asked often."""
        words = _stat(self.pid)
        is_this_one = bool(words) and f"{_boot_id()}:{words[_STAT_START_TIME]}" == self.started
        return words[_STAT_STATE] if is_this_one else ""

    def send(self, number: signal.Signals) -> bool:
        """False where the process is gone."""
        process = self.find()
        if process is None:
            return False
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            return False
        return True


def start_time(pid: int) -> str:
    """When a process started, as `ProcessRef.started`; empty where the system does not say, or the process is gone."""
    words = _stat(pid)
    try:
        return f"{_boot_id()}:{words[_STAT_START_TIME]}" if words else ""
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """The words of /proc/PID/stat behind the command's name; empty where there is no such process or file."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            stat = file.read(_STAT_BYTES)
    except OSError:
        return []
    return stat.rpartition(b")")[2].decode().split()  # the name before it may hold anything


@cache
def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def import_path() -> str:
    """For PYTHONPATH of a child: it must find the packages where this process found them, however that was."""
    return os.pathsep.join(path for path in sys.path if path)


def spawn(
    arguments: Sequence[str], config_file: Path, log_file: Path, place: NetworkPlace | None = None
) -> tuple[ProcessRef, subprocess.Popen[bytes]]:
    """Start `python ARGUMENTS CONFIG_FILE`; see `spawn_command`."""
    command = [*(place.prefix if place else ()), sys.executable, *arguments, str(config_file)]
    environment = {"PYTHONPATH": import_path(), **(place.environment if place else {})}
    return spawn_command(command, config_file, log_file, environment)


def spawn_command(
    command: Sequence[str], config_file: Path, log_file: Path, environment: Mapping[str, str] | None = None
) -> tuple[ProcessRef, subprocess.Popen[bytes]]:
    """Start a command, whose last word is its configuration file, in a session of its own, its output appended to
    `log_file`. `environment` is added to this process's own.

    The Popen is only for waiting: its holder must poll it, or the child stays a zombie.
    """
    with log_file.open("ab") as log:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    try:
        create_time_s = psutil.Process(child.pid).create_time()
    except psutil.NoSuchProcess:  # ended already; being our child it cannot have been replaced
        create_time_s = 0.0
    return ProcessRef(child.pid, create_time_s, str(config_file), start_time(child.pid)), child


class WatchdogFailed(CommandFailed):
    """The watchdog does not run: what it should end would outlive its owner."""


class Watchdog:
    """A process that kills the given processes as soon as its owner is gone, however the owner ends (kill -9 too).

    It waits on a pipe whose other end only the owner holds.
    """

    def __init__(self) -> None:
        self._confirmed = False
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "fencepost_testing.watchdog"],  # -P: nothing from the current folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": import_path()},
        )

    def watch(self, process: ProcessRef) -> None:
        """Raises WatchdogFailed where it has ended."""
        assert self._child.stdin is not None
        try:
            os.write(self._child.stdin.fileno(), (json.dumps(asdict(process)) + "\n").encode())
        except BrokenPipeError:
            raise self._failure() from None

    def confirm(self, timeout_s: float = WATCHDOG_TIMEOUT_S) -> None:
        """Return once it watches; blocks. Raises WatchdogFailed where it does not say so in time."""
        assert self._child.stdout is not None
        if not self._confirmed:
            readable, _, _ = select.select([self._child.stdout], [], [], timeout_s)
            if not readable or os.read(self._child.stdout.fileno(), len(READY)) != READY:
                raise self._failure()
        if self._child.poll() is not None:
            raise self._failure()
        self._confirmed = True

    def _failure(self) -> WatchdogFailed:
        try:  # one that has closed its output is about to end
            ended = f"ended with exit code {self._child.wait(_ENDING_S)}"
        except subprocess.TimeoutExpired:
            ended = "does not answer"
        return WatchdogFailed(
            f"the watchdog that ends processes with their owner {ended}: {sys.executable} -m fencepost_testing.watchdog"
        )

    def close(self) -> None:
        """Kill what is left of what was watched, and return once that is done."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()
