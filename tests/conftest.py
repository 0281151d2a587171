"""For all tests, wherever they are run from."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A runner in the background may have been told to ignore Ctrl-C, and its children inherit that; these tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
