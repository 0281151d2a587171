"""What a failed sync has thrown away, given to the next one.

When a sync fails, the system takes the pages for clean all the same: they are read as they were written, they are not on
the medium, and no later sync writes them. Written once more they are dirty again.
"""

from __future__ import annotations

import os

_COPY_BYTES = 1024 * 1024


def write_again(descriptor: int, position: int = 0) -> None:
    """Write what the file holds from `position` on once more, in place: the next sync has all of it to put on the medium.

    Raises OSError.
    """
    while data := os.pread(descriptor, _COPY_BYTES, position):
        position += os.pwrite(descriptor, data, position)
