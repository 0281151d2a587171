"""Run as a program by `processes.Watchdog`: each line of standard input is a process to watch, a ProcessRef in JSON. When
the input ends, because the owner closed it or died, those that still run are killed.

All that this needs is imported before it says that it watches: later the packages may be gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from fencepost_testing.processes import READY, ProcessRef


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # they are meant for the owner
        signal.signal(number, signal.SIG_IGN)
    os.write(sys.stdout.fileno(), READY)
    for line in sys.stdin.read().splitlines():
        ProcessRef(**json.loads(line)).send(signal.SIGKILL)


if __name__ == "__main__":
    main()
