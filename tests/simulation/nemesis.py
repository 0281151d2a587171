"""What goes wrong: the kinds of faults, and a schedule of them drawn from the seed.

Each fault is one coroutine that does its harm, waits, and heals it. Several run at once. `heal_everything` ends them all.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from tests.simulation.cluster import CONTROLLER, SimCluster, broker_node
from tests.simulation.disk import Fault
from tests.simulation.loop import SimTask
from tests.simulation.workload import ProducerApp

from fencepost_proto.metadata import Partition
from fencepost_proto.v1 import controller_pb2

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
        self._apps = apps
        self._clients = clients
        self._topics = topics  # how to make each topic anew
        self._random = chance
        self._running: dict[SimTask[None], None] = {}
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
            "commit fails": (1, self.commit_fails),
            "clock jump": (1, self.clock_jump),
            "kill producer": (2, self.kill_producer),
            "pause producer": (2, self.pause_producer),
            "reassign": (2, self.reassign),
            "delete a topic": (1, self.delete_topic),
            "take-over behind a cut": (2, self.take_over_behind_a_cut),
            "successor out of touch": (2, self.successor_out_of_touch),
            "followers gone for a moment": (2, self.followers_gone_for_a_moment),
            "replica begins anew": (2, self.replica_begins_anew),
        }

    def only(self, kinds: tuple[str, ...]) -> None:
        """Nothing but these."""
        self.kinds = {name: self.kinds[name] for name in kinds}

    def without(self, kind: str) -> None:
        del self.kinds[kind]

    # ---- The schedule ----

    async def run(self, until_s: float, mean_pause_s: float) -> None:
        """Faults at random, until then. Each seed knows only some kinds, so that rare ones get their turn."""
        names = sorted(self.kinds)
        chosen = self._random.sample(names, self._random.randint(min(3, len(names)), len(names)))
        weights = [self.kinds[name][0] for name in chosen]
        while self.world.now < until_s:
            await asyncio.sleep(self._random.expovariate(1 / mean_pause_s))
            (name,) = self._random.choices(chosen, weights)
            self.begin(name)
            if self._random.random() < 0.2:  # a burst
                for _ in range(self._random.randint(1, 3)):
                    self.begin(self._random.choices(chosen, weights)[0])

    def begin(self, name: str) -> None:
        self.counts[name] += 1
        task: SimTask[None] = self.world.loop.create_task(self.kinds[name][1]())  # type: ignore[arg-type]
        self._running[task] = None
        task.add_done_callback(lambda _: self._running.pop(task, None))

    async def heal_everything(self) -> None:
        """The end of all faults: networks whole, disks sound, everything running."""
        world = self.world
        for task in list(self._running):
            task.cancel()
        await asyncio.sleep(0)
        world.tell("nemesis", "heals everything")
        world.network.heal_all()
        self.cluster.kept_down.clear()
        self.cluster.database.failing_commits = 0
        for machine in world.machines.values():
            machine.disk.faults.clear()
            machine.disk.capacity_bytes = None
            machine.disk.crash_at_operation = 0
            if not machine.powered:
                world.power_on(machine.name)
            world.resume(machine.name)
        for broker_id in self.cluster.settings.broker_ids:
            broker = self.cluster.brokers.get(broker_id)
            if broker is not None and broker.manager.failed_replicas and self.cluster.alive(broker_id):
                world.tell("operator", f"restarts {broker_node(broker_id)}: replicas failed on it")
                world.kill(broker_node(broker_id))
        self.cluster.start_all()

    # ---- Who ----

    def _broker(self) -> int:
        return self._random.choice(self.cluster.settings.broker_ids)

    def _leader(self) -> int:
        leaders = sorted({p.leader for p in self.cluster.judge.image.partitions.values() if p.leader >= 0})
        return self._random.choice(leaders) if leaders else self._broker()

    def _party(self) -> str:
        nodes = [broker_node(broker_id) for broker_id in self.cluster.settings.broker_ids]
        return self._random.choice([*nodes, *nodes, CONTROLLER, *self._clients])

    def _while_s(self) -> float:
        """Mostly short, sometimes beyond every timeout."""
        return self._random.choice((0.05, 0.5, 2.0, MAX_DOWN_S)) * self._random.random()

    # ---- Processes ----

    async def _down(self, node: str) -> None:
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
        await self._down(node)

    async def kill_leader(self) -> None:
        await self.kill_broker(self._leader())

    async def crash_in_disk(self) -> None:
        node = broker_node(self._broker())
        disk = self.world.machine(node).disk
        disk.crash_at_operation = disk.operations + self._random.randint(1, 60)

        def crash() -> None:
            self.world.tell("nemesis", f"kills {node} in the middle of a disk operation")
            self.world.kill(node)

        disk.on_crash = crash
        await asyncio.sleep(self._while_s())
        disk.crash_at_operation = 0
        await self._down(node)

    async def pause_broker(self) -> None:
        node = broker_node(self._leader() if self._random.random() < 0.7 else self._broker())
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
        await self._power_failure(sorted(self._random.sample(ids, self._random.randint(2, len(ids)))))

    async def _power_failure(self, broker_ids: list[int]) -> None:
        self.world.tell("nemesis", f"takes the power from brokers {broker_ids}")
        nodes = [broker_node(broker_id) for broker_id in broker_ids]
        for node in nodes:
            self.world.power_failure(node)
        self.cluster.judge.lost_power(broker_ids)
        await asyncio.gather(*(self._down(node) for node in nodes))

    async def kill_everything(self) -> None:
        self.world.tell("nemesis", "kills everything")
        nodes = [CONTROLLER, *(broker_node(broker_id) for broker_id in self.cluster.settings.broker_ids)]
        for node in nodes:
            self.world.kill(node)
        await asyncio.gather(*(self._down(node) for node in nodes))

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
        await self._down(node)

    async def kill_controller(self) -> None:
        self.world.tell("nemesis", "kills the controller")
        self.world.kill(CONTROLLER)
        await self._down(CONTROLLER)

    async def pause_controller(self) -> None:
        await self._pause(CONTROLLER)

    async def kill_producer(self) -> None:
        app = self._random.choice(self._apps)
        self.world.tell("nemesis", f"kills {app.spec.node}")
        self.world.kill(app.spec.node)
        await asyncio.sleep(self._while_s())
        process = self.world.machine(app.spec.node).process
        if process is None or not process.alive:
            app.start()

    async def pause_producer(self) -> None:
        await self._pause(self._random.choice(self._apps).spec.node)

    # ---- The network ----

    async def cut_one_way(self) -> None:
        await self._cut([(self._party(), self._party())])

    async def cut_both_ways(self) -> None:
        one, other = self._party(), self._party()
        await self._cut([(one, other), (other, one)])

    async def isolate_broker(self) -> None:
        victim = broker_node(self._leader())
        others = [node for node in self.world.machines if node != victim]
        if self._random.random() < 0.5:  # from the cluster only; clients still reach it
            others = [node for node in others if node not in self._clients]
        pairs = [(victim, other) for other in others]
        if self._random.random() < 0.7:
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
            link.extra_delay_s = self._random.choice((0.02, 0.2, 1.0))
            link.bytes_per_s = self._random.choice((0.0, 10_000.0))
        await asyncio.sleep(self._while_s())
        for link in links:
            link.extra_delay_s = 0.0
            link.bytes_per_s = 0.0

    # ---- Disks and clocks ----

    async def disk_full(self) -> None:
        node = broker_node(self._broker())
        disk = self.world.machine(node).disk
        self.world.tell("nemesis", f"fills the disk of {node}")
        disk.capacity_bytes = disk.used_bytes() + self._random.randrange(FULL_DISK_ROOM_BYTES)
        await asyncio.sleep(self._while_s())
        disk.capacity_bytes = None
        await self._restart_failed(node)

    async def disk_error(self) -> None:
        node = broker_node(self._broker())
        kind = self._random.choice(("append", "sync", "read", "truncate", "rename", "open", "sync_directory"))
        self.world.tell("nemesis", f"lets a {kind} fail on {node}")
        self.world.machine(node).disk.faults.append(
            Fault((kind,), errno.EIO, "-", count=self._random.randint(1, 3), skip=self._random.randint(0, 5))
        )
        await asyncio.sleep(self._while_s())
        self.world.machine(node).disk.faults.clear()
        await self._restart_failed(node)

    async def _restart_failed(self, node: str) -> None:
        """An operator's part: a failed replica stays failed until its process is started again."""
        self.world.tell("operator", f"restarts {node} after a disk failure")
        self.world.kill(node)
        await self._down(node)

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
        record, broker_id = self._random.choice(choices)
        node, view = broker_node(broker_id), judge.view(record, broker_id)
        self.world.kill(node)
        disk = self.world.machine(node).disk
        snapshots = [
            path for path, _ in disk.files() if path.startswith(f"{view.folder}/") and path.endswith(".snapshot")
        ]
        read_from = max((int(path[-29:-9]) for path in snapshots), default=0)
        place = view.place_of(self._random.choice(view.since(read_from) or [None]))
        if place is not None:
            path, position, size = place
            # Not in the length, which may make a batch look unfinished, nor in the epoch, which no CRC covers.
            position += self._random.choice((self._random.randrange(8), self._random.randrange(16, size)))
            self.world.tell("nemesis", f"kills {node} and corrupts byte {position} in {path}")
            disk.corrupt(path, position)
            judge.damage(record, broker_id)
        await self._down(node)

    async def commit_fails(self) -> None:
        self.world.tell("nemesis", "lets commits of the controller fail")
        self.cluster.database.failing_commits = self._random.randint(1, 4)

    async def clock_jump(self) -> None:
        machine = self._random.choice(list(self.world.machines.values()))
        machine.wall_clock_offset_ms += self._random.choice((-3_600_000, -5_000, 5_000, 3_600_000))
        self.world.tell("nemesis", f"sets the clock of {machine.name} to {machine.wall_clock_offset_ms:+d} ms")

    # ---- Operators ----

    async def reassign(self) -> None:
        partitions = list(self.cluster.judge.image.partitions.values())
        if not partitions:
            return
        partition = self._random.choice(partitions)
        topic = self.cluster.judge.image.topics[partition.topic_id]
        ids = self.cluster.settings.broker_ids
        size = min(len(ids), max(1, self._random.choice((len(partition.replicas), 3))))
        target = self._random.sample(ids, size)
        await self._reassign(topic.name, partition, target)

    async def _reassign(self, topic_name: str, partition: Partition, target: list[int]) -> None:
        self.world.tell("operator", f"reassigns {topic_name}-{partition.index} from {partition.replicas} to {target}")
        request = controller_pb2.AlterPartitionReassignmentsRequest(topic_name=topic_name)
        request.reassignments.add(partition=partition.index, replicas=target)
        await self.cluster.ask_admin("AlterPartitionReassignments", request)

    async def delete_topic(self) -> None:
        """And make it again under the same name: another topic, with nothing in it."""
        name = self._random.choice(list(self._topics))
        self.world.tell("operator", f"deletes {name}")
        await self.cluster.ask_admin("DeleteTopic", controller_pb2.DeleteTopicRequest(name=name))
        await asyncio.sleep(self._while_s())
        await self.cluster.ask_admin("CreateTopic", self._topics[name])  # healing does it where this fails

    # ---- Situations: several faults, arranged so that they meet ----

    async def take_over_behind_a_cut(self) -> None:
        """Another instance of a producer takes over, while a leader that the old one works with does not hear of it."""
        pairs = [
            (app, other)
            for app in self._apps
            for other in self._apps
            if app is not other and app.spec.options.get("name") == other.spec.options.get("name", "") and other.at_work
        ]
        if not pairs:
            return
        app, other = self._random.choice(pairs)
        leader = broker_node(self._leader())
        self.world.tell("nemesis", f"cuts {CONTROLLER}->{leader}; {app.spec.node} takes over from {other.spec.node}")
        self.world.network.cut(CONTROLLER, leader)
        self.world.kill(app.spec.node)
        app.start()
        await asyncio.sleep(self._random.uniform(0.5, MAX_DOWN_S))
        self.world.network.heal(CONTROLLER, leader)

    async def successor_out_of_touch(self) -> None:
        """A leader dies. The next one has heard late what is committed, and does not hear from the other members now."""
        partitions = [p for p in self.cluster.judge.image.partitions.values() if p.leader >= 0 and len(p.isr) > 2]
        if not partitions:
            return
        partition = self._random.choice(partitions)
        leader = broker_node(partition.leader)
        successor, *others = [
            broker_node(m) for m in partition.replicas if m in partition.isr and m != partition.leader
        ]
        news = self.world.network.link(leader, successor)
        self.world.tell("nemesis", f"slows {leader}->{successor}, kills {leader}, cuts {others}->{successor}")
        news.extra_delay_s = 0.3
        await asyncio.sleep(self._random.uniform(0.5, 1.5))
        news.extra_delay_s = 0.0
        for other in others:
            self.world.network.cut(other, successor)
        self.world.kill(leader)
        await self._down(leader)
        for other in others:
            self.world.network.heal(other, successor)

    async def followers_gone_for_a_moment(self) -> None:
        """A leader refuses batches for want of replicas, and takes them again, while those of one producer trickle in."""
        image = self.cluster.judge.image
        partitions = [
            p
            for p in image.partitions.values()
            if p.leader >= 0 and len(p.isr) > 1 and image.topics[p.topic_id].config.min_insync_replicas > 1
        ]
        if not partitions:
            return
        partition = self._random.choice(partitions)
        leader = broker_node(partition.leader)
        followers = [broker_node(member) for member in partition.isr if member != partition.leader]
        links = [self.world.network.link(app.spec.node, leader) for app in self._apps]
        self.world.tell("nemesis", f"slows producers->{leader} and kills {followers}")
        for link in links:
            link.bytes_per_s = self._random.choice((2_000.0, 5_000.0))
        for follower in followers:
            self.world.kill(follower)
        await asyncio.gather(*(self._down(follower) for follower in followers))
        await asyncio.sleep(1)
        for link in links:
            link.bytes_per_s = 0.0

    async def replica_begins_anew(self) -> None:
        """A partition leaves one of its brokers, and comes back: to an empty folder, and where retention has been at
        work, to a log whose first batches nobody has any more."""
        judge = self.cluster.judge
        choices = [p for p in judge.image.partitions.values() if p.leader >= 0 and len(p.replicas) > 1]
        starts = [judge.view(judge.records[p.id], p.leader).start_offset for p in choices]
        moved = [p for p, start in zip(choices, starts, strict=True) if start > 0]
        if not choices:
            return
        partition = self._random.choice(moved or choices)
        name = judge.image.topics[partition.topic_id].name
        everybody = list(partition.replicas)
        victim = self._random.choice([broker_id for broker_id in everybody if broker_id != partition.leader])
        await self._reassign(name, partition, [broker_id for broker_id in everybody if broker_id != victim])
        await asyncio.sleep(self._random.uniform(0.5, 2))
        await self._reassign(name, partition, everybody)
