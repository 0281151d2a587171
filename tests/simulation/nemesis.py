"""What goes wrong: the kinds of faults, and a schedule of them drawn from the seed.

Each fault is one coroutine that does its harm, waits, and heals it. Several run at once. `heal_everything` ends them all.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from fencepost_node.log.snapshot import decode_snapshot
from fencepost_node.state_machines import STATE_MACHINES
from fencepost_proto.protocol.errors import CorruptMessage
from fencepost_proto.protocol.metadata import Partition
from fencepost_proto.protocol.v1 import controller_pb2
from tests.simulation.cluster import SimCluster, broker_node
from tests.simulation.disk import Fault
from tests.simulation.folder_situations import FolderSituations
from tests.simulation.hostile_clients import HostileClients, HostileProducers
from tests.simulation.judged import PartitionRecord
from tests.simulation.loop import SimTask
from tests.simulation.poison import HostileWriters
from tests.simulation.situations import Situations
from tests.simulation.small_files import SmallFiles
from tests.simulation.topic_changes import TopicChanges
from tests.simulation.workload import ConsumerApp, ProducerApp

POISONED = 0.1  # of the faults bring unreadable batches along, in runs that know them
STRANGE = 0.3  # of the faults bring a stranger along, in runs that know some
CHANGED = 0.3  # of the faults bring an operator along who changes a topic, in runs that know some
ROTTING = 0.3  # of the faults change bytes of small files, too, in runs that know them
UNREADABLE = "unreadable batches"
SMALL_FILES_ROT = "small files rot"
MAX_DOWN_S = 6.0  # how long something stays dead, paused or cut off, at most
FULL_DISK_ROOM_BYTES = 2_000  # what still fits when a disk becomes full, at most


class Nemesis:
    """Owns the faults of one run."""

    def __init__(
        self,
        cluster: SimCluster,
        apps: list[ProducerApp],
        clients: list[str],
        topics: dict[str, controller_pb2.CreateTopicRequest],
        chance: random.Random,
    ) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.counts: Counter[str] = Counter()
        self.apps = apps
        self.readers: list[ConsumerApp] = []
        self._clients = clients
        self._topics = topics  # how to make each topic again
        self.random = chance
        self._running: dict[SimTask[None], None] = {}
        self._situations = situations = Situations(self)
        folders = FolderSituations(self)
        hostile = HostileClients(self)
        self.strange = cluster.world.chance("strangers")
        self.poison = cluster.world.chance("unreadable batches")  # drawn apart, too
        self._writers = HostileWriters(self, hostile, self.poison)
        self.poisons = False
        producers = HostileProducers(self, hostile)
        self.strangers: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {  # drawn apart, beside the others
            "ids never given out": (1, producers.ids_never_given_out),
            "ids of the next producers": (1, producers.ids_of_the_next_producers),
            "flood of new producers": (1, producers.flood_of_new_producers),
        }
        self._rotting = cluster.world.chance("small files")  # drawn apart, too
        self.small_files = SmallFiles(self, self._rotting)
        self.small_files_rot = False
        self._apart: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            UNREADABLE: (1, self._writers.write),
            SMALL_FILES_ROT: (1, self.small_files.rot),
        }
        self.operators = cluster.world.chance("operators")  # drawn apart, too
        self.changes = TopicChanges(cluster, self.operators)
        self.changes_topics = False
        self.topic_changes: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "delete records": (2, self.changes.delete_records),
            "change settings": (1, self.changes.change_settings),
            "add partitions": (1, self.changes.add_partitions),
        }
        self.kinds: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "kill broker": (6, self.kill_broker),
            "kill leader": (6, self.kill_leader),
            "kill at a disk operation": (3, self.crash_in_disk),
            "pause broker": (4, self.pause_broker),
            "power failure": (3, self.power_failure),
            "power failure of several": (1, self.power_failure_of_several),
            "kill everything": (1, self.kill_everything),
            "clean restart": (3, self.clean_restart),
            "kill controller": (3, self.kill_controller),
            "pause controller": (1, self.pause_controller),
            "cut one way": (4, self.cut_one_way),
            "cut both ways": (4, self.cut_both_ways),
            "isolate broker": (3, self.isolate_broker),
            "reset connections": (4, self.reset_connections),
            "flaky links": (3, self.flaky_links),
            "slow links": (2, self.slow_links),
            "disk full": (1, self.disk_full),
            "disk error": (1, self.disk_error),
            "corrupt a log": (1, self.corrupt_log),
            "all disks full": (1, self.disks_full),
            "bit rot": (2, self.rot),
            "commit fails": (1, self.commit_fails),
            "clock jump": (1, self.clock_jump),
            "kill producer": (2, self.kill_producer),
            "pause producer": (2, self.pause_producer),
            "reassign": (2, self.reassign),
            "delete a topic": (1, self.delete_topic),
            "take-over behind a cut": (2, situations.take_over_behind_a_cut),
            "successor out of touch": (2, situations.successor_out_of_touch),
            "followers gone for a moment": (2, situations.followers_gone_for_a_moment),
            "replica begins again": (2, situations.replica_begins_anew),
            "unclean election": (2, situations.unclean_election),
            "older folder put back": (2, folders.older_folder_put_back),
            "log is lost": (1, folders.log_is_lost),
            "log is copied": (1, folders.log_is_copied),
            "hostile client": (2, hostile.come),
            "controller put back": (1, situations.controller_put_back),
        }

    def with_several_controllers(self) -> None:
        """The faults of a cluster with several controllers on etcd, in place of those of one on SQLite."""
        for kind in ("commit fails", "controller put back", "hostile client", "take-over behind a cut"):
            del self.kinds[kind]
        self.strangers = {}
        self.kinds |= {
            "kill controller": (6, self.kill_controller),
            "pause controller": (5, self.pause_controller),
            "kill controller and leader": (4, self.kill_controller_and_leader),
            "isolate controller": (4, self.isolate_controller),
            "kill etcd": (4, self.kill_etcd),
            "pause etcd": (3, self.pause_etcd),
            "isolate etcd": (3, self.isolate_etcd),
            "etcd loses answers": (4, self.etcd_loses_answers),
            "etcd is late": (4, self.etcd_is_late),
            "most of etcd away": (2, self.most_of_etcd_away),
            "etcd's clock is fast": (3, self.etcd_clock_is_fast),
            "controller's clock is slow": (3, self.controller_clock_is_slow),
        }

    def only(self, kinds: tuple[str, ...]) -> None:
        """Nothing but these."""
        known = self.kinds | self.strangers | self._apart | self.topic_changes
        self.kinds = {name: known[name] for name in kinds}
        self.strangers = {}

    def without(self, kind: str) -> None:
        del self.kinds[kind]

    # ---- The schedule ----

    async def run(self, until_s: float, mean_pause_s: float) -> None:
        """Faults at random, until then. Each seed knows only some kinds, so that rare ones get their turn."""
        names = sorted(self.kinds)
        chosen = self.random.sample(names, self.random.randint(min(3, len(names)), len(names)))
        weights = [self.kinds[name][0] for name in chosen]
        while self.world.now < until_s:
            await asyncio.sleep(self.random.expovariate(1 / mean_pause_s))
            (name,) = self.random.choices(chosen, weights)
            self.begin(name)
            if self.strangers and self.strange.random() < STRANGE:
                self.begin(self.strange.choice(sorted(self.strangers)))
            if self.poisons and self.poison.random() < POISONED:
                self.begin(UNREADABLE)
            if self.changes_topics and self.operators.random() < CHANGED:
                self.begin(self.operators.choice(sorted(self.topic_changes)))
            if self.small_files_rot and self._rotting.random() < ROTTING:
                self.begin(SMALL_FILES_ROT)
            if self.random.random() < 0.2:  # a burst
                for _ in range(self.random.randint(1, 3)):
                    self.begin(self.random.choices(chosen, weights)[0])

    def begin(self, name: str) -> None:
        self.counts[name] += 1
        work = (self.kinds | self.strangers | self._apart | self.topic_changes)[name][1]()
        task: SimTask[None] = self.world.loop.create_task(work)  # type: ignore[arg-type]
        self._running[task] = None
        task.add_done_callback(lambda _: self._running.pop(task, None))

    async def heal_everything(self) -> None:
        """The end of all faults: networks whole, disks sound, everything running."""
        world = self.world
        for task in list(self._running):
            task.cancel()
        await asyncio.sleep(0)
        world.tell("nemesis", "heals everything")
        self.cluster.judge.look_at_strangers()
        world.network.heal_all()
        self.cluster.kept_down.clear()
        self.cluster.database.failing_commits = 0
        if self.cluster.etcd is not None:
            self.cluster.etcd.heal()
        for machine in world.machines.values():
            machine.disk.faults.clear()
            machine.disk.capacity_bytes = None
            machine.disk.crash_at_operation = 0
            if not machine.powered:
                world.power_on(machine.name)
            world.resume(machine.name)
        await self._situations.recover_controller()
        self.cluster.start_all()

    # ---- Who ----

    def _broker(self) -> int:
        return self.random.choice(self.cluster.settings.broker_ids)

    def a_leader(self) -> int:
        leaders = sorted({p.leader for p in self.cluster.judge.image.partitions.values() if p.leader >= 0})
        return self.random.choice(leaders) if leaders else self._broker()

    def _party(self) -> str:
        nodes = [broker_node(broker_id) for broker_id in self.cluster.settings.broker_ids]
        others = (*self.cluster.controller_nodes, *self.cluster.etcd_nodes, *self._clients)
        return self.random.choice([*nodes, *nodes, *others])

    def _controller(self) -> str:
        """Mostly the active one, where there are several."""
        nodes = self.cluster.controller_nodes
        if len(nodes) == 1:
            return nodes[0]
        active = self.cluster.controller_address.partition(":")[0]
        return active if self.random.random() < 0.7 else self.random.choice(nodes)

    def _while_s(self) -> float:
        """Mostly short, sometimes beyond every timeout."""
        return self.random.choice((0.05, 0.5, 2.0, MAX_DOWN_S)) * self.random.random()

    # ---- Processes ----

    async def down(self, node: str) -> None:
        """Leave it down for a while, then start it."""
        self.cluster.kept_down[node] = None
        await asyncio.sleep(self._while_s())
        self.cluster.kept_down.pop(node, None)
        if not self.world.machine(node).powered:
            self.world.power_on(node)
        self.cluster.start(node)

    async def kill_broker(self, broker_id: int | None = None) -> None:
        node = broker_node(self._broker() if broker_id is None else broker_id)
        self.world.tell("nemesis", f"kills {node}")
        self.world.kill(node)
        await self.down(node)

    async def kill_leader(self) -> None:
        await self.kill_broker(self.a_leader())

    async def crash_in_disk(self) -> None:
        node = broker_node(self._broker())
        disk = self.world.machine(node).disk
        disk.crash_at_operation = disk.operations + self.random.randint(1, 60)

        def crash() -> None:
            self.world.tell("nemesis", f"kills {node} in the middle of a disk operation")
            self.world.kill(node)

        disk.on_crash = crash
        await asyncio.sleep(self._while_s())
        disk.crash_at_operation = 0
        await self.down(node)

    async def pause_broker(self) -> None:
        node = broker_node(self.a_leader() if self.random.random() < 0.7 else self._broker())
        await self._pause(node)

    async def _pause(self, node: str) -> None:
        process = self.world.machine(node).process
        self.world.tell("nemesis", f"pauses {node}")
        self.world.pause(node)
        await asyncio.sleep(self._while_s())
        if process is self.world.machine(node).process:
            self.world.tell("nemesis", f"wakes {node}")
            self.world.resume(node)

    async def power_failure(self) -> None:
        await self._power_failure([self._broker()])

    async def power_failure_of_several(self) -> None:
        ids = self.cluster.settings.broker_ids
        await self._power_failure(sorted(self.random.sample(ids, self.random.randint(2, len(ids)))))

    async def _power_failure(self, broker_ids: list[int]) -> None:
        self.world.tell("nemesis", f"takes the power from brokers {broker_ids}")
        nodes = [broker_node(broker_id) for broker_id in broker_ids]
        for node in nodes:
            self.world.power_failure(node)
        self.cluster.judge.lost_power(broker_ids)
        await asyncio.gather(*(self.down(node) for node in nodes))

    async def kill_everything(self) -> None:
        self.world.tell("nemesis", "kills everything")
        brokers = [broker_node(broker_id) for broker_id in self.cluster.settings.broker_ids]
        nodes = [*self.cluster.controller_nodes, *self.cluster.etcd_nodes, *brokers]
        for node in nodes:
            self.world.kill(node)
        await asyncio.gather(*(self.down(node) for node in nodes))

    async def clean_restart(self) -> None:
        node = broker_node(self._broker())
        process = self.world.machine(node).process
        if process is None or not process.alive or not self.cluster.can_stop(node):
            return
        self.world.tell("nemesis", f"stops {node}")
        self.cluster.kept_down[node] = None
        self.cluster.stop(node)
        async with asyncio.timeout(20):
            while process.alive:  # noqa: ASYNC110 - a process has no event for its end
                await asyncio.sleep(0.05)
        await self.down(node)

    async def kill_controller(self) -> None:
        node = self._controller()
        self.world.tell("nemesis", f"kills the {node}")
        self.world.kill(node)
        await self.down(node)

    async def pause_controller(self) -> None:
        await self._pause(self._controller())

    async def kill_controller_and_leader(self) -> None:
        await asyncio.gather(self.kill_controller(), self.kill_leader())

    async def isolate_controller(self) -> None:
        """From etcd, or from everything."""
        node = self._controller()
        others = list(self.cluster.etcd_nodes)
        if self.random.random() < 0.5:
            others = [other for other in self.world.machines if other != node]
        await self._cut([(node, other) for other in others] + [(other, node) for other in others])

    def _etcd(self) -> str:
        return self.random.choice(self.cluster.etcd_nodes)

    async def kill_etcd(self) -> None:
        node = self._etcd()
        self.world.tell("nemesis", f"kills {node}")
        self.world.kill(node)
        await self.down(node)

    async def pause_etcd(self) -> None:
        await self._pause(self._etcd())

    async def isolate_etcd(self) -> None:
        node = self._etcd()
        others = [other for other in self.cluster.etcd_nodes if other != node]
        if self.random.random() < 0.5:
            others += self.cluster.controller_nodes
        await self._cut([(node, other) for other in others] + [(other, node) for other in others])

    async def etcd_loses_answers(self) -> None:
        self.world.tell("nemesis", "has etcd lose answers")
        assert self.cluster.etcd is not None
        self.cluster.etcd.lose_answers(self.random.randint(1, 3))

    async def etcd_is_late(self) -> None:
        self.world.tell("nemesis", "has etcd carry requests out after an error")
        assert self.cluster.etcd is not None
        self.cluster.etcd.be_late(self.random.randint(1, 2))

    async def most_of_etcd_away(self) -> None:
        """Nothing is committed meanwhile, and no lease ends."""
        nodes = self.random.sample(self.cluster.etcd_nodes, 2)
        self.world.tell("nemesis", f"kills {nodes[0]} and {nodes[1]}")
        for node in nodes:
            self.world.kill(node)
        await asyncio.gather(*map(self.down, nodes))

    async def etcd_clock_is_fast(self) -> None:
        """Leases end before their time, by the clocks of those that hold them."""
        fast_s = self.random.uniform(0.2, 3.0)
        self.world.tell("nemesis", f"has etcd's clock gain {fast_s:.1f} s")
        assert self.cluster.etcd is not None
        self.cluster.etcd.gain(fast_s)

    async def controller_clock_is_slow(self) -> None:
        """It takes its lease for longer than it is, as one does whose machine stood still without its clock's knowing."""
        node, slow_s = self._controller(), self.random.uniform(0.2, 5.0)
        self.world.tell("nemesis", f"has the clock of {node} lose {slow_s:.1f} s")
        self.cluster.lose_time(node, slow_s)

    async def kill_producer(self) -> None:
        app = self.random.choice(self.apps)
        self.world.tell("nemesis", f"kills {app.spec.node}")
        self.world.kill(app.spec.node)
        await asyncio.sleep(self._while_s())
        process = self.world.machine(app.spec.node).process
        if process is None or not process.alive:
            app.start()

    async def pause_producer(self) -> None:
        await self._pause(self.random.choice(self.apps).spec.node)

    # ---- The network ----

    async def cut_one_way(self) -> None:
        await self._cut([(self._party(), self._party())])

    async def cut_both_ways(self) -> None:
        one, other = self._party(), self._party()
        await self._cut([(one, other), (other, one)])

    async def isolate_broker(self) -> None:
        victim = broker_node(self.a_leader())
        others = [node for node in self.world.machines if node != victim]
        if self.random.random() < 0.5:  # from the cluster only; clients still reach it
            others = [node for node in others if node not in self._clients]
        pairs = [(victim, other) for other in others]
        if self.random.random() < 0.7:
            pairs += [(other, victim) for other in others]
        await self._cut(pairs)

    async def _cut(self, pairs: list[tuple[str, str]]) -> None:
        pairs = [(source, target) for source, target in pairs if source != target]
        if not pairs:
            return
        self.world.tell("nemesis", f"cuts {', '.join(f'{source}->{target}' for source, target in pairs)}")
        for source, target in pairs:
            self.world.network.cut(source, target)
        await asyncio.sleep(self._while_s())
        for source, target in pairs:
            self.world.network.heal(source, target)
        self.world.tell("nemesis", f"heals {pairs[0][0]}->{pairs[0][1]} and {len(pairs) - 1} others")

    async def reset_connections(self) -> None:
        one, other = self._party(), self._party()
        self.world.tell("nemesis", f"resets connections between {one} and {other}")
        self.world.network.reset(one, other)

    async def flaky_links(self) -> None:
        """Connections break under messages, so that acknowledgements are lost."""
        links = [self.world.network.link(self._party(), self._party()) for _ in range(4)]
        self.world.tell("nemesis", f"makes flaky: {', '.join(f'{link.source}->{link.target}' for link in links)}")
        for link in links:
            link.reset_probability = 0.05
        await asyncio.sleep(self._while_s())
        for link in links:
            link.reset_probability = 0.0

    async def slow_links(self) -> None:
        links = [self.world.network.link(self._party(), self._party()) for _ in range(3)]
        self.world.tell("nemesis", f"slows {', '.join(f'{link.source}->{link.target}' for link in links)}")
        for link in links:
            link.extra_delay_s = self.random.choice((0.02, 0.2, 1.0))
            link.bytes_per_s = self.random.choice((0.0, 10_000.0))
        await asyncio.sleep(self._while_s())
        for link in links:
            link.extra_delay_s = 0.0
            link.bytes_per_s = 0.0

    # ---- Disks and clocks ----

    async def disk_full(self) -> None:
        node = broker_node(self._broker())
        disk = self.world.machine(node).disk
        self.world.tell("nemesis", f"fills the disk of {node}")
        disk.capacity_bytes = disk.used_bytes() + self.random.randrange(FULL_DISK_ROOM_BYTES)
        await asyncio.sleep(self._while_s())
        disk.capacity_bytes = None

    async def disk_error(self) -> None:
        node = broker_node(self._broker())
        kind = self.random.choice(("append", "sync", "read", "truncate", "rename", "open", "sync_directory"))
        self.world.tell("nemesis", f"lets a {kind} fail on {node}")
        self.world.machine(node).disk.faults.append(
            Fault((kind,), errno.EIO, "-", count=self.random.randint(1, 3), skip=self.random.randint(0, 5))
        )
        await asyncio.sleep(self._while_s())
        self.world.machine(node).disk.faults.clear()

    async def disks_full(self) -> None:
        """Everyone's disk is full for a while: they are one, or were filled by one application."""
        self.world.tell("nemesis", "fills all disks")
        disks = [self.world.machine(broker_node(broker_id)).disk for broker_id in self.cluster.settings.broker_ids]
        for disk in disks:
            disk.capacity_bytes = disk.used_bytes() + self.random.randrange(FULL_DISK_ROOM_BYTES)
        await asyncio.sleep(self._while_s())
        for disk in disks:
            disk.capacity_bytes = None

    async def rot(self) -> None:
        """A byte changes under a running broker, mostly a leader, in a batch or snapshot that no recovery reads; another
        in-sync replica holds everything. A consumer may begin again, and read all of it."""
        judge = self.cluster.judge
        choices = [
            (record, broker_id)
            for record in judge.records.values()
            for broker_id in judge.image.partitions[record.key].isr
            if broker_id not in judge.lost_tail
            and (broker_id, record.key) not in judge.damaged
            and self.cluster.alive(broker_id)
            and any(
                other != broker_id
                and other not in judge.lost_tail
                and judge.holds_all(record, other)
                and not self._has_damaged_snapshots(record, other)
                for other in judge.image.partitions[record.key].isr
            )
        ]
        if not choices:
            return
        leaders = [(record, b) for record, b in choices if judge.image.partitions[record.key].leader == b]
        record, broker_id = self.random.choice(leaders if leaders and self.random.random() < 0.7 else choices)
        view, disk = judge.view(record, broker_id), self.world.machine(broker_node(broker_id)).disk
        snapshots = sorted(self._snapshots(record, broker_id))
        below = int(snapshots[-1][-29:-9]) if snapshots else 0
        batches = [batch for batch in view.batches if batch.end_offset <= below]
        if len(snapshots) > 1 and self.random.random() < 0.2:
            path, position = snapshots[0], 20
        elif (place := view.place_of(self.random.choice(batches or [None]))) is not None:
            # Not in the epoch, which no CRC covers: where the leader has read it before, a consumer cannot tell.
            path, position = (
                place[0],
                place[1] + self.random.choice((self.random.randrange(12), self.random.randrange(16, place[2]))),
            )
        else:
            return
        self.world.tell("nemesis", f"corrupts byte {position} in {path} under broker {broker_id}")
        disk.corrupt(path, position)
        if not path.endswith(".snapshot"):
            judge.rot(record, broker_id)
        if self.readers and self.random.random() < 0.5:
            reader = self.random.choice(self.readers)
            self.world.tell("nemesis", f"starts {reader.node} again")
            self.world.kill(reader.node)
            reader.start()

    def _snapshots(self, record: PartitionRecord, broker_id: int) -> dict[str, bytes]:
        """Files of producer snapshots, by path."""
        folder = f"{self.cluster.judge.view(record, broker_id).folder}/"
        files = self.world.machine(broker_node(broker_id)).disk.files()
        return {
            path: bytes(node.content) for path, node in files if path.startswith(folder) and path.endswith(".snapshot")
        }

    def _has_damaged_snapshots(self, record: PartitionRecord, broker_id: int) -> bool:
        return not all(map(is_snapshot, self._snapshots(record, broker_id).values()))

    async def corrupt_log(self) -> None:
        """A byte changes in what recovery will read of a stopped broker's log; another in-sync replica holds everything."""
        judge = self.cluster.judge
        choices = [
            (record, broker_id)
            for record in judge.records.values()
            for broker_id in judge.image.partitions[record.key].replicas
            # After a power failure recovery cannot tell a damaged batch from one that was lost: one fault at a time.
            if broker_id not in judge.lost_tail
            and any(
                other != broker_id and judge.holds_all(record, other)
                for other in judge.image.partitions[record.key].isr
            )
        ]
        if not choices:
            return
        record, broker_id = self.random.choice(choices)
        node, view = broker_node(broker_id), judge.view(record, broker_id)
        self.world.kill(node)
        disk = self.world.machine(node).disk
        snapshots = [
            path for path, _ in disk.files() if path.startswith(f"{view.folder}/") and path.endswith(".snapshot")
        ]
        read_from = max((int(path[-29:-9]) for path in snapshots), default=0)
        place = view.place_of(self.random.choice(view.since(read_from) or [None]))
        if place is not None:
            path, position, size = place
            # Not in the length, which may make a batch look unfinished, nor in the epoch, which no CRC covers.
            position += self.random.choice((self.random.randrange(8), self.random.randrange(16, size)))
            self.world.tell("nemesis", f"kills {node} and corrupts byte {position} in {path}")
            disk.corrupt(path, position)
            judge.damage(record, broker_id)
        await self.down(node)

    async def commit_fails(self) -> None:
        self.world.tell("nemesis", "lets commits of the controller fail")
        self.cluster.database.failing_commits = self.random.randint(1, 4)

    async def clock_jump(self) -> None:
        machine = self.random.choice(list(self.world.machines.values()))
        jump_ms = self.random.choice((-3_600_000, -5_000, 5_000, 3_600_000))
        machine.wall_clock_offset_ms += jump_ms
        self.cluster.judge.clocks_jumped_s += abs(jump_ms) / 1000
        self.world.tell("nemesis", f"sets the clock of {machine.name} to {machine.wall_clock_offset_ms:+d} ms")

    # ---- Operators ----

    async def reassign(self) -> None:
        partitions = list(self.cluster.judge.image.partitions.values())
        if not partitions:
            return
        partition = self.random.choice(partitions)
        topic = self.cluster.judge.image.topics[partition.topic_id]
        ids = self.cluster.settings.broker_ids
        size = min(len(ids), max(1, self.random.choice((len(partition.replicas), 3))))
        target = self.random.sample(ids, size)
        await self.reassign_to(topic.name, partition, target)

    async def reassign_to(self, topic_name: str, partition: Partition, target: list[int]) -> None:
        """Unless a log that is damaged, and has not shown it yet, would be all that is left."""
        stay = [broker_id for broker_id in target if broker_id in partition.isr]
        if stay and all((broker_id, partition.id) in self.cluster.judge.damaged for broker_id in stay):
            return
        self.world.tell("operator", f"reassigns {topic_name}-{partition.index} from {partition.replicas} to {target}")
        request = controller_pb2.AlterPartitionReassignmentsRequest(topic_name=topic_name)
        request.reassignments.add(partition=partition.index, replicas=target)
        await self.cluster.ask_admin("AlterPartitionReassignments", request)

    async def delete_topic(self) -> None:
        """And make it again under the same name: another topic, with nothing in it."""
        name = self.random.choice(list(self._topics))
        self.world.tell("operator", f"deletes {name}")
        await self.cluster.ask_admin("DeleteTopic", controller_pb2.DeleteTopicRequest(name=name))
        await asyncio.sleep(self._while_s())
        await self.cluster.ask_admin("CreateTopic", self._topics[name])  # healing does it where this fails


def is_snapshot(content: bytes) -> bool:
    try:
        decode_snapshot(content, STATE_MACHINES)
    except CorruptMessage:
        return False
    return True
