"""Situations: several faults, arranged so that they meet. Those of the nemesis, drawn blindly, seldom do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from fencepost_proto.protocol.metadata import Partition
from tests.simulation.cluster import CONTROLLER, broker_node

if TYPE_CHECKING:
    from tests.simulation.nemesis import Nemesis

MAX_CUT_S = 6.0
MAX_LAG_S = 8.0  # for a follower to leave the in-sync set, and for a leader's death to be known
ASLEEP = 0.5  # of the readers and the old leaders, during an unclean election
SHORTER_ON_PURPOSE = 0.3  # of the unclean elections: any replica, whatever it holds


class Situations:
    """Kinds of faults of a nemesis, which draws their details and heals what they leave."""

    def __init__(self, nemesis: Nemesis) -> None:
        self._nemesis = nemesis
        self._cluster = nemesis.cluster
        self._world = nemesis.world

    async def take_over_behind_a_cut(self) -> None:
        """Another instance of a producer takes over, while a leader that the old one works with does not hear of it."""
        pairs = [
            (app, other)
            for app in self._nemesis.apps
            for other in self._nemesis.apps
            if app is not other and app.spec.options.get("name") == other.spec.options.get("name", "") and other.at_work
        ]
        if not pairs:
            return
        app, other = self._nemesis.random.choice(pairs)
        leader = broker_node(self._nemesis.a_leader())
        self._world.tell("nemesis", f"cuts {CONTROLLER}->{leader}; {app.spec.node} takes over from {other.spec.node}")
        self._world.network.cut(CONTROLLER, leader)
        self._world.kill(app.spec.node)
        app.start()
        await asyncio.sleep(self._nemesis.random.uniform(0.5, MAX_CUT_S))
        self._world.network.heal(CONTROLLER, leader)

    async def successor_out_of_touch(self) -> None:
        """A leader dies. The next one has heard late what is committed, and does not hear from the other members now."""
        partitions = [p for p in self._cluster.judge.image.partitions.values() if p.leader >= 0 and len(p.isr) > 2]
        if not partitions:
            return
        partition = self._nemesis.random.choice(partitions)
        leader = broker_node(partition.leader)
        successor, *others = [
            broker_node(m) for m in partition.replicas if m in partition.isr and m != partition.leader
        ]
        news = self._world.network.link(leader, successor)
        self._world.tell("nemesis", f"slows {leader}->{successor}, kills {leader}, cuts {others}->{successor}")
        news.extra_delay_s = 0.3
        await asyncio.sleep(self._nemesis.random.uniform(0.5, 1.5))
        news.extra_delay_s = 0.0
        for other in others:
            self._world.network.cut(other, successor)
        self._world.kill(leader)
        await self._nemesis.down(leader)
        for other in others:
            self._world.network.heal(other, successor)

    async def followers_gone_for_a_moment(self) -> None:
        """A leader refuses batches for want of replicas, and takes them again, while those of one producer trickle in."""
        image = self._cluster.judge.image
        partitions = [
            p
            for p in image.partitions.values()
            if p.leader >= 0 and len(p.isr) > 1 and image.topics[p.topic_id].config.min_insync_replicas > 1
        ]
        if not partitions:
            return
        partition = self._nemesis.random.choice(partitions)
        leader = broker_node(partition.leader)
        followers = [broker_node(member) for member in partition.isr if member != partition.leader]
        links = [self._world.network.link(app.spec.node, leader) for app in self._nemesis.apps]
        self._world.tell("nemesis", f"slows producers->{leader} and kills {followers}")
        for link in links:
            link.bytes_per_s = self._nemesis.random.choice((2_000.0, 5_000.0))
        for follower in followers:
            self._world.kill(follower)
        await asyncio.gather(*(self._nemesis.down(follower) for follower in followers))
        await asyncio.sleep(1)
        for link in links:
            link.bytes_per_s = 0.0

    async def replica_begins_anew(self) -> None:
        """A partition leaves one of its brokers, and comes back: to an empty folder, and where retention has been at
        work, to a log whose first batches no one has any more."""
        judge = self._cluster.judge
        choices = [p for p in judge.image.partitions.values() if p.leader >= 0 and len(p.replicas) > 1]
        starts = [judge.view(judge.records[p.id], p.leader).start_offset for p in choices]
        moved = [p for p, start in zip(choices, starts, strict=True) if start > 0]
        if not choices:
            return
        partition = self._nemesis.random.choice(moved or choices)
        name = judge.image.topics[partition.topic_id].name
        everybody = list(partition.replicas)
        victim = self._nemesis.random.choice([broker_id for broker_id in everybody if broker_id != partition.leader])
        await self._nemesis.reassign_to(name, partition, [broker_id for broker_id in everybody if broker_id != victim])
        await asyncio.sleep(self._nemesis.random.uniform(0.5, 2))
        await self._nemesis.reassign_to(name, partition, everybody)

    async def controller_put_back(self) -> None:
        """The controller dies, and its folder comes back from a copy that was taken a while ago. It is started, meets its
        brokers, and ends; an operator recovers its store."""
        copy = self._cluster.database.back_up()
        await asyncio.sleep(self._nemesis.random.uniform(0.2, MAX_CUT_S))
        if self._cluster.recovering or self._cluster.database.gone_back:
            return
        self._world.tell("nemesis", f"puts the controller's store back to version {copy.image.version}")
        self._cluster.kept_down[CONTROLLER] = None
        self._world.kill(CONTROLLER)
        for broker_id in self._cluster.settings.broker_ids:  # one that no one reaches does no harm
            self._world.network.heal(CONTROLLER, broker_node(broker_id))
            self._world.network.heal(broker_node(broker_id), CONTROLLER)
        self._cluster.database.put_back(copy, self._cluster.known_version)
        self._cluster.start(CONTROLLER)
        await asyncio.sleep(self._nemesis.random.choice((0.0, 0.5, 2.0)))
        await self.recover_controller()

    async def recover_controller(self) -> None:
        """Until it is done: what stands in its way ends, or is healed in the end."""
        cluster = self._cluster
        if cluster.etcd is not None:
            return
        cluster.recovering = True
        cluster.kept_down[CONTROLLER] = None
        while cluster.database.gone_back:
            self._world.kill(CONTROLLER)
            for broker_id in cluster.settings.broker_ids:
                if not self._world.machine(broker_node(broker_id)).powered:
                    self._world.power_on(broker_node(broker_id))
                self._world.resume(broker_node(broker_id))
                cluster.start(broker_node(broker_id))
            await cluster.recover_controller()
        cluster.recovering = False
        cluster.kept_down.pop(CONTROLLER, None)
        cluster.start(CONTROLLER)

    async def unclean_election(self) -> None:
        """The followers of a partition lag and leave, its leader goes on alone and then dies or sleeps for some time; an
        operator elects one of the others, mostly the best, sometimes a shorter log on purpose. Then the old leader comes
        back: with what is on its disk, or with all that it remembers."""
        judge, nemesis = self._cluster.judge, self._nemesis
        choices = [p for p in judge.image.partitions.values() if p.leader >= 0 and len(p.replicas) > 1]
        if not choices:
            return
        partition = nemesis.random.choice(choices)
        key, leader = partition.id, broker_node(partition.leader)
        followers = [broker_node(member) for member in partition.replicas if member != partition.leader]

        def now() -> Partition:
            return judge.image.partitions.get(key, partition)  # it may be deleted meanwhile

        self._world.tell("nemesis", f"separates {leader} from {followers}, until it goes")
        for number, follower in enumerate(followers):
            if number:
                await asyncio.sleep(nemesis.random.uniform(0, 1))  # they do not end at the same offset
            self._world.network.cut(leader, follower)
            self._world.network.cut(follower, leader)
        await self._until(lambda: now().isr == (partition.leader,), MAX_LAG_S)
        await asyncio.sleep(nemesis.random.uniform(0.5, 3))
        come_back = self._kill_or_pause(leader)
        for follower in followers:
            self._world.network.heal(leader, follower)
            self._world.network.heal(follower, leader)
        await self._until(lambda: now().leader < 0, MAX_LAG_S)
        wake_readers = self._pause_readers()
        if key in judge.image.partitions and now().leader < 0:
            on_purpose = nemesis.random.random() < SHORTER_ON_PURPOSE
            await self._cluster.elect_uncleanly(key, lambda count: nemesis.random.randrange(count) if on_purpose else 0)
            await asyncio.sleep(nemesis.random.uniform(0, 3))
        come_back()
        await asyncio.sleep(nemesis.random.uniform(0, 4))
        wake_readers()

    def _kill_or_pause(self, node: str) -> Callable[[], None]:
        """Returns what undoes it."""
        process = self._world.machine(node).process
        sleeps = self._nemesis.random.random() < ASLEEP
        self._world.tell("nemesis", f"{'pauses' if sleeps else 'kills'} {node}")
        if sleeps:
            self._world.pause(node)
        else:
            self._cluster.kept_down[node] = None
            self._world.kill(node)

        def undo() -> None:
            if not sleeps:
                self._cluster.kept_down.pop(node, None)
                if not self._world.machine(node).powered:
                    self._world.power_on(node)
                self._cluster.start(node)
            elif self._world.machine(node).process is process:
                self._world.resume(node)

        return undo

    def _pause_readers(self) -> Callable[[], None]:
        """Some of them: they hear of an election only when the new log has grown. Returns what wakes them."""
        nodes = [reader.node for reader in self._nemesis.readers if self._nemesis.random.random() < ASLEEP]
        for node in nodes:
            self._world.tell("nemesis", f"pauses {node}")
            self._world.pause(node)

        def wake() -> None:
            for node in nodes:
                self._world.resume(node)

        return wake

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Or until the time is up, or the partition is gone: other faults meddle."""
        deadline = self._world.now + timeout_s
        while self._world.now < deadline:
            try:
                if condition():
                    return
            except KeyError:
                return
            await asyncio.sleep(0.05)
