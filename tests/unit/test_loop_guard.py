"""A client knows a process that was forked from its own."""

from __future__ import annotations

import subprocess
import sys

from fencepost_testing.processes import import_path

_FORK = """
import asyncio, os
from fencepost.loop_guard import LoopGuard

async def main():
    guard = LoopGuard("producer")
    assert not guard.forked
    guard.bind()
    assert not guard.forked
    if not os.fork():
        os._exit(10 + guard.forked)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 11
    assert not guard.forked

asyncio.run(main())
"""


def test_a_forked_child_is_told_from_the_process_that_started_the_client() -> None:
    subprocess.run([sys.executable, "-c", _FORK], env={"PYTHONPATH": import_path()}, timeout=60, check=True)
