"""Standard input, output and error of a process that may have been started without them (`>&-`)."""

from __future__ import annotations

import os
import sys


def ensure_standard_streams() -> None:
    """Open the null device as each of the descriptors 0 to 2 that is closed, before anything else is opened.

    Otherwise the next file or socket gets that number: libuv aborts when it closes one, and what is meant for the
    terminal would be written into it. Python has made the stream of a closed descriptor None; it becomes a real one.
    """
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 - for the process's life
