"""What operators do to the data folder of a broker that is down: put an older copy back, copy a log's folder, lose one.

The broker is made the last in sync of one of its partitions before, now and then: then only what it says of its folder keeps
it from leading. Another replica always holds what is committed, so that nothing is lost permanently.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.simulation.cluster import broker_node
from tests.simulation.disk import FolderNode, SimDisk
from tests.simulation.judged import PartitionRecord

if TYPE_CHECKING:
    from tests.simulation.nemesis import Nemesis

DATA = "/data"
ALONE_WITHIN_S = 8.0
STOPPED_WITHIN_S = 20.0


class FolderSituations:
    """Kinds of faults of a nemesis, which draws their details and heals what they leave."""

    def __init__(self, nemesis: Nemesis) -> None:
        self._nemesis = nemesis
        self._cluster = nemesis.cluster
        self._world = nemesis.world
        self._judge = nemesis.cluster.judge
        self._random = nemesis.random

    async def older_folder_put_back(self) -> None:
        """A copy of the whole folder, made while the broker ran, after a clean stop or after a kill, and used later."""
        victim = self._a_replica()
        if victim is None:
            return
        record, broker_id = victim
        node, disk = broker_node(broker_id), self._disk(broker_id)
        when = self._random.choice(("running", "stopped", "killed"))
        if when != "running":
            await self._end(node, clean=when == "stopped")
        copy = disk.copy_of(DATA)
        self._world.tell("nemesis", f"copies the folder of {node}, {when}")
        if when != "running":
            await self._nemesis.down(node)
        await asyncio.sleep(self._random.uniform(0.5, 3.0))
        async with self._alone(record, broker_id):
            await self._end(node, clean=self._random.random() < 0.5)
            if not self._others_hold_all(broker_id):
                return
            self._world.tell("nemesis", f"puts the copy back on {node}")
            disk.put_back(DATA, copy)
            self._judge.put_back(broker_id)
            await self._nemesis.down(node)

    async def log_is_lost(self) -> None:
        """The folder of one log is gone, or the file in it that says whose log it is."""
        victim = self._a_replica()
        if victim is None:
            return
        record, broker_id = victim
        node, disk = broker_node(broker_id), self._disk(broker_id)
        async with self._alone(record, broker_id):
            await self._end(node, clean=self._random.random() < 0.5)
            folder = disk.find(f"{DATA}/{record.name}")
            deleted = record.key not in self._judge.records
            if deleted or not isinstance(folder, FolderNode) or not self._others_hold_all(broker_id):
                return
            what = self._random.choice(("partition.metadata", ""))
            self._world.tell("nemesis", f"removes {record.name}/{what} on {node}")
            if what:
                folder.put({what: None})
                folder.sync()
            else:
                data = disk.folder(DATA)
                data.put({record.name: None})
                data.sync()
            self._judge.damage(record, broker_id)
            await self._nemesis.down(node)

    async def log_is_copied(self) -> None:
        """Beside itself, under a name that looks like another partition's, or like a backup's."""
        victim = self._a_replica()
        if victim is None:
            return
        record, broker_id = victim
        node, disk = broker_node(broker_id), self._disk(broker_id)
        topic, _, partition = record.name.rpartition("-")
        name = self._random.choice(
            (f"{topic}-7", f"{topic}-copy-{partition}", f"{record.name}-0", f"{record.name}-01", f"{record.name}.bak")
        )
        await self._end(node, clean=self._random.random() < 0.5)
        if disk.find(f"{DATA}/{record.name}") is not None and disk.find(f"{DATA}/{name}") is None:
            self._world.tell("nemesis", f"copies {record.name} to {name} on {node}")
            disk.put_back(f"{DATA}/{name}", disk.copy_of(f"{DATA}/{record.name}"))
            self._judge.strangers.append((broker_id, f"{DATA}/{name}", disk.content(f"{DATA}/{name}")))
        await self._nemesis.down(node)

    # ---- Parts ----

    def _disk(self, broker_id: int) -> SimDisk:
        return self._world.machine(broker_node(broker_id)).disk

    def _a_replica(self) -> tuple[PartitionRecord, int] | None:
        choices = [
            (record, broker_id)
            for record in self._judge.records.values()
            for broker_id in self._judge.image.partitions[record.key].isr
            if len(self._judge.image.partitions[record.key].replicas) > 1 and self._cluster.alive(broker_id)
        ]
        return self._random.choice(choices) if choices else None

    async def _end(self, node: str, *, clean: bool) -> None:
        """Its process has ended when this returns, and no one starts it."""
        process = self._world.machine(node).process
        self._cluster.kept_down[node] = None
        if clean and process is not None and process.running and self._cluster.can_stop(node):
            self._world.tell("nemesis", f"stops {node}")
            self._cluster.stop(node)
            until = self._world.now + STOPPED_WITHIN_S
            while process.alive and self._world.now < until:  # noqa: ASYNC110 - a process has no event for its end
                await asyncio.sleep(0.05)
        self._world.kill(node)

    def _alone(self, record: PartitionRecord, broker_id: int) -> _Alone:
        partition = self._judge.image.partitions.get(record.key)  # None: deleted meanwhile
        others = [member for member in partition.isr if member != broker_id] if partition else []
        return _Alone(self, record, broker_id, others if self._random.random() < 0.7 else [])

    async def end_others(self, record: PartitionRecord, broker_id: int, others: list[int]) -> None:
        for other in others:
            await self._end(broker_node(other), clean=self._random.random() < 0.5)
        until = self._world.now + ALONE_WITHIN_S
        while self._world.now < until:
            partition = self._judge.image.partitions.get(record.key)
            if partition is None or partition.isr == (broker_id,):
                return
            await asyncio.sleep(0.1)

    async def start_others(self, others: list[int]) -> None:
        await asyncio.gather(*(self._nemesis.down(broker_node(other)) for other in others))

    def _others_hold_all(self, broker_id: int) -> bool:
        """Whatever this broker loses, some other replica has it."""
        return all(
            any(self._judge.holds_all(record, other) for other in partition.replicas if other != broker_id)
            for record in self._judge.records.values()
            if broker_id in (partition := self._judge.image.partitions[record.key]).replicas
        )


class _Alone:
    """While it lasts, the broker is the last in sync of that partition, where it came to that."""

    def __init__(
        self, situations: FolderSituations, record: PartitionRecord, broker_id: int, others: list[int]
    ) -> None:
        self._situations = situations
        self._record = record
        self._broker_id = broker_id
        self._others = others

    async def __aenter__(self) -> None:
        if self._others:
            await self._situations.end_others(self._record, self._broker_id, self._others)

    async def __aexit__(self, *_: object) -> None:
        if self._others:
            await self._situations.start_others(self._others)
