"""The process of a chaos run's client."""

from __future__ import annotations

import subprocess
import sys

STOPPED_AT_ITS_END = """
import asyncio, os, signal
from fencepost_testing.chaos.client import run, stop_on_sigterm

async def client():
    stop = stop_on_sigterm()
    asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(stop.wait(), 30)

class LastOfAll:  # goes while the interpreter takes its modules down, after its signal handlers
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
        kill(pid, number)

last = LastOfAll()
run(client())
os.kill(os.getpid(), signal.SIGTERM)
print("ended by itself")
"""


def test_a_client_that_is_just_ending_is_not_killed_by_a_request_to_end() -> None:
    """A zombie, woken and fenced, ended at the moment at which the run told all to end (chaos, seeds 101 and 1)."""
    done = subprocess.run([sys.executable, "-c", STOPPED_AT_ITS_END], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended by itself\n", "")
