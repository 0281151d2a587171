"""Processes that this project started, told from all others.

A pid alone names nobody: once its process is gone the number may be another's. So a process is remembered as pid *and*
creation time *and* the configuration file on its command line, and only one that answers to all three is ever
signalled. A zombie (ended, not yet waited for by its parent) counts as gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# The creation time is reckoned from the boot time, which the kernel corrects when the wall clock is set.
_CREATE_TIME_TOLERANCE_S = 2.0
_LOOKS_AT_A_NEW_PROCESS = 10
_LOOK_AGAIN_S = 0.002


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs, when that is not simply this machine at its loopback address: a network namespace, for one."""

    host: str  # the address that it has there
    prefix: tuple[str, ...] = ()  # words before its command line that bring it there
    environment: Mapping[str, str] = field(default_factory=dict)  # added to this process's own


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """One process, over its whole life."""

    pid: int
    create_time_s: float  # of the Unix epoch
    config_file: str  # the last word of its command line

    def find(self) -> psutil.Process | None:
        """The running (or stopped) process; None once it has ended."""
        for _ in range(_LOOKS_AT_A_NEW_PROCESS):
            try:
                process = psutil.Process(self.pid)
                if abs(process.create_time() - self.create_time_s) > _CREATE_TIME_TOLERANCE_S:
                    return None
                if process.status() == psutil.STATUS_ZOMBIE:
                    return None
                command_line = process.cmdline()
            except psutil.NoSuchProcess:
                return None
            if command_line:
                return process if command_line[-1] == self.config_file else None
            time.sleep(_LOOK_AGAIN_S)  # the kernel is just starting its program, and shows no command line yet
        return None

    def alive(self) -> bool:
        return self.find() is not None

    def paused(self) -> bool:
        process = self.find()
        try:
            return process is not None and process.status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

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


def spawn(
    arguments: Sequence[str], config_file: Path, log_file: Path, place: Place | None = None
) -> tuple[ProcessRef, subprocess.Popen[bytes]]:
    """Start `python ARGUMENTS CONFIG_FILE` in a session of its own, its standard error appended to `log_file`.

    The Popen is only for waiting: whoever keeps it must poll it, or the child stays a zombie.
    """
    with log_file.open("ab") as log:
        child = subprocess.Popen(
            [*(place.prefix if place else ()), sys.executable, *arguments, str(config_file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **place.environment} if place else None,
        )
    try:
        create_time_s = psutil.Process(child.pid).create_time()
    except psutil.NoSuchProcess:  # ended already; being our child it cannot have been replaced
        create_time_s = 0.0
    return ProcessRef(child.pid, create_time_s, str(config_file)), child


class Watchdog:
    """A process that kills what it was told of as soon as its owner is gone, however the owner ends (kill -9 too).

    It waits on a pipe whose other end only the owner holds.
    """

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-m", "fencepost_cli.watchdog"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, process: ProcessRef) -> None:
        assert self._child.stdin is not None
        line = f"{process.pid} {process.create_time_s!r} {process.config_file}\n"
        os.write(self._child.stdin.fileno(), line.encode())

    def close(self) -> None:
        """Kill what is left of what was watched, and return once that is done."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()
