"""Rewrite pages after a failed fsync: the kernel marks them clean, so the next fsync would skip them.

Until then they are read from the page cache as they were written, and they are not on disk.
"""

from __future__ import annotations

import os

_COPY_BYTES = 1024 * 1024


def redirty(descriptor: int, position: int = 0) -> None:
    """Rewrite the file's content from `position` on, in place, so that the next fsync writes all of it.

    Raises OSError.
    """
    while data := os.pread(descriptor, _COPY_BYTES, position):
        position += os.pwrite(descriptor, data, position)
