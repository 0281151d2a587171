"""Run as a program by `network.Network`: each line of standard input names a network interface or namespace that a run
made ("link NAME", "netns NAME"). When the input ends, because the run closed it or died, they are removed, newest first.
"""

from __future__ import annotations

import signal
import subprocess
import sys


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # they are meant for the run
        signal.signal(number, signal.SIG_IGN)
    for line in reversed(sys.stdin.read().splitlines()):
        kind, name = line.split()
        subprocess.run(["ip", kind, "delete", name], stdin=subprocess.DEVNULL, capture_output=True, check=False)


if __name__ == "__main__":
    main()
