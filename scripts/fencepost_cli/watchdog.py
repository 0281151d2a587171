"""Run as a program by `processes.Watchdog`: one line of standard input names one process to watch ("pid create-time
config-file"). When the input ends, because the owner closed it or died, those that still run are killed.
"""

from __future__ import annotations

import signal
import sys


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # they are meant for the owner
        signal.signal(number, signal.SIG_IGN)
    watched = sys.stdin.read().splitlines()
    if not watched:
        return
    from fencepost_cli.processes import ProcessRef

    for line in watched:
        pid, create_time_s, config_file = line.split(" ", 2)
        ProcessRef(int(pid), float(create_time_s), config_file).send(signal.SIGKILL)


if __name__ == "__main__":
    main()
