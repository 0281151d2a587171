"""Changes a byte of a stored batch under a running broker, and lets disks be full for a while.

*Flipped byte*: in a replica's segment file, where every other replica is in sync. The broker finds it by itself, when the
bytes are read or by its scrubber, gives its log up and gets it again from a leader. Until then other faults are kept away
from the brokers: with no one else in sync, a damaged batch is gone, and nothing that a broker can do helps.

*Full disk*: by a fault of the cluster (`Faults.fill_disk`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fencepost_testing.chaos.faults import Fault, FaultKind, SkippedFault
from fencepost_testing.chaos.nemesis_log import Happened
from fencepost_testing.chaos.view import View
from fencepost_testing.local_cluster import AsyncLocalCluster, Node
from fencepost_testing.replica_files import replica_folder
from fencepost_testing.waiting import NotInTime, until

IN_SYNC_TIMEOUT_S = 8.0
REPAIR_TIMEOUT_S = 45.0  # for a flipped byte to be found, and the log to be there again
RESTART_TIMEOUT_S = 60.0
MIN_BYTES = 4096  # of a segment file
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Flipped:
    """A byte that was changed."""

    path: Path
    position: int
    inode: int  # of the file, by which a file that has taken its place is recognised


def flip_byte(folder: Path, rng: random.Random) -> Flipped | None:
    """In a segment of a partition's folder: one that is not written to any more, or else the active one's first half, all
    of which is committed where all replicas are in sync. None: there is too little."""
    files = sorted(folder.glob("*.log"))
    sizes = [file.stat().st_size for file in files]
    wanted = [(file, size * 3 // 4) for file, size in zip(files[:-1], sizes[:-1], strict=True) if size >= MIN_BYTES]
    if not wanted and files and sizes[-1] >= MIN_BYTES:
        wanted = [(files[-1], sizes[-1] // 2)]
    if not wanted:
        return None
    path, below = rng.choice(wanted)
    position = rng.randrange(below)
    descriptor = os.open(path, os.O_RDWR)
    try:
        (byte,) = os.pread(descriptor, 1, position)
        os.pwrite(descriptor, bytes([byte ^ (1 << rng.randrange(8))]), position)
        return Flipped(path, position, os.fstat(descriptor).st_ino)
    finally:
        os.close(descriptor)


def stands(flipped: Flipped) -> bool:
    """Whether the file is still where it was."""
    try:
        return flipped.path.stat().st_ino == flipped.inode
    except FileNotFoundError:
        return False


class Disks:
    """The caller keeps other faults away from the brokers that are hit; from all of them, for a flipped byte."""

    def __init__(self, cluster: AsyncLocalCluster, view: View, topic: str) -> None:
        self._cluster = cluster
        self._view = view
        self._topic = topic

    async def flip(self, fault: Fault, happened: Happened) -> str:
        """Returns what is wrong: a byte that is not found, or a log that does not come back. Raises Skipped."""
        index, rng = fault.partition, random.Random(f"{fault.at_s}/{fault.partition}")
        partition = await self._view.all_in_sync(index, IN_SYNC_TIMEOUT_S)
        followers = [member for member in partition.isr if member != partition.leader]
        broker = partition.leader if fault.kind is FaultKind.FLIP_LEADERS_BYTE else rng.choice(followers)
        flipped = await asyncio.to_thread(flip_byte, replica_folder(self._cluster, broker, self._topic, index), rng)
        if flipped is None:
            raise SkippedFault(f"partition {index} holds too little")
        where = f"byte {flipped.position} of {flipped.path.name} of partition {index} on broker {broker}"
        happened.targets = (f"broker-{broker}",)
        happened.note = where
        deadline = time.monotonic() + REPAIR_TIMEOUT_S
        try:
            await until(lambda: not stands(flipped), f"{where} is found", REPAIR_TIMEOUT_S, poll_s=_POLL_S)
        except NotInTime:
            return f"{where} was changed, and not found within {REPAIR_TIMEOUT_S:g} s"
        try:
            await self._view.all_in_sync(index, max(0.0, deadline - time.monotonic()))
        except SkippedFault as skipped:
            return f"{where} was changed, and its log did not come back: {skipped}"
        return ""

    async def fill(self, fault: Fault, nodes: Sequence[Node]) -> list[str]:
        """For the fault's duration. Returns what is wrong: brokers that have ended. Raises ClusterError."""
        with contextlib.ExitStack() as full:
            for node in nodes:
                assert isinstance(node, int)
                full.enter_context(self._cluster.faults.fill_disk(node))
            await asyncio.sleep(fault.duration_s)
        ended = [node for node in nodes if not self._cluster.running(node)]
        problems = []
        for node in ended:
            code = await self._cluster.wait_gone(node)
            problems.append(f"broker {node} ended with exit code {code} while its disk was full")
            await self._cluster.start(node, timeout_s=RESTART_TIMEOUT_S)
        return problems
