"""A file that no copy of it passes for: is this folder the one that a process wrote, or one that was put back?

A process writes the time into the file, and with the same write the file system notes the time of the change
(`st_ctime`, which no program can set). In the file that was written the two agree. In a copy, made with whatever tool, the
change is that of the copying, and the content is older. A tool that leaves alone what looks unchanged (rsync) would pass
over it, so the mark is renewed all the while: its size and modification time are never those of an older copy.

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
    """A mark of the machine's file system, open to be renewed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._comparable = True
        try:
            self.renew()
        except BaseException:
            self.close()
            raise

    def renew(self) -> None:
        """Write the time of now. Raises OSError; then the mark may be one that does not pass any more."""
        for _ in range(ATTEMPTS):
            now_ns = time.time_ns()
            os.pwrite(self._descriptor, b"%020d\n" % now_ns, 0)
            if abs(os.fstat(self._descriptor).st_ctime_ns - now_ns) <= TOLERANCE_NS:
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
        match = _CONTENT.fullmatch(os.pread(descriptor, 64, 0))
        changed_ns = os.fstat(descriptor).st_ctime_ns
    finally:
        os.close(descriptor)
    if match is None:
        return False
    written_ns = int(match[1])
    return written_ns == 0 or abs(changed_ns - written_ns) <= TOLERANCE_NS
