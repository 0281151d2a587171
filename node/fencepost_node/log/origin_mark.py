"""A file that no copy of it passes for: is this folder the one that a process wrote, or one that was put back?

A process writes the time into the file, and with the same write the file system notes the time of the change
(`st_ctime`, which no program can set). In the file that was written the two agree. In a copy, made with whatever tool, the
change is that of the copying, and the content is older. A tool that leaves alone what looks unchanged (rsync) would pass
over it; so one mark is renewed all the while, and never has the modification time of an older copy. A power failure may tear
what is renewed and not synced; so another one is synced, and stays.

Not seen is a copy that brings the file system's own notes back: a snapshot of the whole file system or volume.

Where the file system has another clock than the machine (a network's), times cannot be compared: the mark then holds 0,
and every copy of it passes.
"""

from __future__ import annotations

import logging
import os
import re
import time

log = logging.getLogger(__name__)

TOLERANCE_NS = 50_000_000  # file systems take the time of the last timer tick, up to 10 ms ago
ATTEMPTS = 5  # a process may be paused between reading the clock and writing

_CONTENT = re.compile(rb"(\d{20})\n")


class RealOriginMark:
    """A mark of the machine's file system, made where it is not there."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._comparable = True

    @property
    def is_original(self) -> bool:
        return _is_original(self._descriptor)

    def renew(self) -> None:
        for _ in range(ATTEMPTS):
            os.pwrite(self._descriptor, b"%020d\n" % time.time_ns(), 0)
            if self.is_original:
                return
        os.pwrite(self._descriptor, b"%020d\n" % 0, 0)
        if self._comparable:
            log.warning("file system has another clock, so copies of the data folder are not seen path=%s", self._path)
            self._comparable = False

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def is_original(path: str) -> bool:
    """False where there is no file, a copy, or something else. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return _is_original(descriptor)
    finally:
        os.close(descriptor)


def _is_original(descriptor: int) -> bool:
    match = _CONTENT.fullmatch(os.pread(descriptor, 64, 0))
    if match is None:
        return False
    written_ns = int(match[1])
    return written_ns == 0 or abs(os.fstat(descriptor).st_ctime_ns - written_ns) <= TOLERANCE_NS
