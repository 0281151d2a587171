"""What happens to several controllers on etcd, as short stories; and deliberate faults that each of them shows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from fencepost_controller.candidacy import Candidacy
from fencepost_controller.store import CommitFailed
from fencepost_controller.store.etcd.calls import Comparison, EtcdRefused, EtcdUnreachable, Operation, Txn
from fencepost_controller.store.etcd.leadership import Lease
from fencepost_controller.store.etcd.reader import MetadataReader, Standing
from fencepost_controller.store.etcd.term import Term
from fencepost_node.controller_link import ControllerLink
from fencepost_proto.protocol.v1 import controller_pb2, controller_pb2_grpc
from tests.simulation.cluster import ClusterSettings, SimCluster, broker_node
from tests.simulation.etcd import SimEtcd
from tests.simulation.loop import collector_off
from tests.simulation.process import SimProcess
from tests.simulation.world import World


class Cluster:
    """Three brokers, three controllers, three members of etcd."""

    def __init__(self, world: World, session_timeout_ms: int) -> None:
        self.world = world
        self.sim = SimCluster(
            world, ClusterSettings(controllers=3, session_timeout_ms=session_timeout_ms, heartbeat_interval_ms=100)
        )
        assert self.sim.etcd is not None
        self.etcd: SimEtcd = self.sim.etcd
        self.sim.start_all()
        world.loop.create_task(self.etcd.tick_for_ever())

    async def until(self, what: str, condition: Callable[[], object], within_s: float = 15.0) -> None:
        deadline = self.world.now + within_s
        while not condition():
            if self.world.now > deadline:
                self.sim.judge.fail("G11", f"not in {within_s:.0f} s: {what}")
            await asyncio.sleep(0.001)
            self.etcd.sweep(self.sim.brokers)

    def active(self, *, but: str = "") -> str:
        """The node of the controller that decides; empty: none does."""
        controllers = self.sim.controllers.items()
        return next((n for n, one in controllers if one.is_active and self.sim.runs(n) and n != but), "")

    def others(self, node: str) -> list[str]:
        return [other for other in self.sim.controller_nodes if other != node]

    def cut_from_etcd(self, node: str) -> None:
        for member in self.etcd.nodes:
            self.world.network.cut(node, member)
            self.world.network.cut(member, node)

    async def settled(self) -> str:
        """Every broker follows one controller, and has been heard for a while. That controller's node."""

        def follow() -> bool:
            node = self.active()
            return bool(node) and self.followed_by_all(node)

        await self.until("all follow the active controller", follow)
        return self.active()

    def followed_by_all(self, node: str) -> bool:
        epoch = self.sim.controllers[node].epoch
        sessions = [(b._session, b._link.controller_epoch) for b in self.sim.brokers.values()]
        return len(sessions) == 3 and all(s is not None and s.registered and seen == epoch for s, seen in sessions)

    async def create(self, name: str) -> None:
        request = controller_pb2.CreateTopicRequest(name=name, partitions=1, replication_factor=3)
        deadline = self.world.now + 15
        while (outcome := await self.sim.ask_admin("CreateTopic", request)) != "ok" and "exists" not in outcome:
            if self.world.now > deadline:
                self.sim.judge.fail("G11", f"topic {name}: {outcome}")
            await asyncio.sleep(0.1)


Story = Callable[[Cluster], Coroutine[Any, Any, None]]


async def a_commit_comes_late(cluster: Cluster) -> None:
    """etcd refuses it, and carries it out when its author's lease is over and no one has taken over."""
    node = await cluster.settled()
    for member in cluster.etcd.members.values():
        member.late_requests, member.late_s = 1, 3.0
    request = controller_pb2.CreateTopicRequest(name="late", partitions=1, replication_factor=3)
    asking = asyncio.create_task(cluster.sim.ask_admin("CreateTopic", request))
    members = cluster.etcd.members.values()
    await cluster.until("the request is refused", lambda: any(not member.late_requests for member in members))
    for member in members:
        member.late_requests = 0
    for controller in cluster.sim.controller_nodes:
        cluster.world.pause(controller)
    await asyncio.sleep(4)  # in virtual time
    for controller in cluster.sim.controller_nodes:
        cluster.world.resume(controller)
    await cluster.settled()
    await asking
    assert node


async def the_active_controller_is_cut_off_from_etcd(cluster: Cluster) -> None:
    """Brokers reach it still: they are to go to the next one."""
    node = await cluster.settled()
    cluster.cut_from_etcd(node)
    await cluster.until("another one is active", lambda: cluster.active(but=node))
    await cluster.until("all follow it", lambda: cluster.followed_by_all(cluster.active(but=node) or node))


async def a_slow_clock_hides_the_end_of_the_lease(cluster: Cluster) -> None:
    """The old one is cut off from etcd, takes its lease for good, and is asked what changes nothing."""
    node = await cluster.settled()
    await cluster.create("t")
    candidacy = cluster.sim.controllers[node]._candidacy
    assert candidacy is not None
    lease = candidacy._lease
    cluster.sim.lose_time(node, 10)
    cluster.cut_from_etcd(node)
    await cluster.until("another one is active", lambda: cluster.active(but=node))
    await asyncio.sleep(0.2)
    assert not lease.is_over
    request = controller_pb2.AllocateProducerIdsRequest(
        broker_id=99, broker_epoch=1
    )  # refused: there is no such broker
    await cluster.sim._ask(
        lambda host: controller_pb2_grpc.ControllerStub(host.wire.connect(f"{node}:9090")),
        "AllocateProducerIds",
        request,
    )
    cluster.world.network.heal_all()
    await cluster.settled()


async def a_standby_has_missed_something(cluster: Cluster) -> None:
    """It was cut off from etcd meanwhile; then it is the one that takes over."""
    node = await cluster.settled()
    missing, third = cluster.others(node)
    cluster.world.kill(third)
    cluster.cut_from_etcd(missing)
    await cluster.create("missed")
    await asyncio.sleep(0.5)
    cluster.world.network.heal_all()
    cluster.world.kill(node)
    await cluster.settled()
    await cluster.create("next")
    ends = {how: count for how, count in cluster.sim.exits.items() if how != "stopped"}
    if ends:
        cluster.sim.judge.fail("unhandled", f"processes ended: {ends}")


async def an_answer_is_overtaken_by_the_next_controller(cluster: Cluster) -> None:
    """It is on its way while the broker learns of a newer epoch."""
    node = await cluster.settled()
    broker = cluster.sim.brokers[1]
    process = cluster.world.machine(broker_node(1)).process
    assert isinstance(process, SimProcess)
    cluster.world.network.link(node, broker_node(1)).extra_delay_s = 1.0
    asking = process.spawn(_outcome(broker._link.allocate_producer_ids()))
    await asyncio.sleep(0.2)  # it is answered, and the answer is on its way
    broker._link.check_epoch(broker._link.controller_epoch + 1)
    cluster.etcd.sweep(cluster.sim.brokers)
    await cluster.until("the answer", asking.done)
    await asyncio.sleep(0.05)
    cluster.etcd.sweep(cluster.sim.brokers)


async def a_controller_stops_while_brokers_register(cluster: Cluster) -> None:
    """It waits for its store, and its machine stands still: the brokers look for another one, and none is taken for dead."""
    first = await cluster.settled()
    await asyncio.sleep(6)  # the others have followed it for longer than a session timeout
    cluster.world.kill(first)
    await cluster.until("another one is active", lambda: cluster.active(but=first))
    second = cluster.active(but=first)
    cluster.cut_from_etcd(second)
    liveness = cluster.sim.controllers[second].reign().sessions._liveness
    await cluster.until("registrations wait", lambda: all(watch.waiting for watch in liveness._watches.values()))
    cluster.world.pause(second)
    (third,) = (node for node in cluster.sim.controller_nodes if node not in (first, second))
    await cluster.until("the third one decides", lambda: cluster.sim.controllers[third].is_active)
    controller, began = cluster.sim.controllers[third], cluster.world.now
    while not cluster.followed_by_all(third):
        dead = [broker.id for broker in controller.image.brokers.values() if broker.fenced]
        assert not dead, f"{dead} are declared dead {cluster.world.now - began:.1f} s after the third one took over"
        await asyncio.sleep(0.01)


async def _outcome(call: Awaitable[object]) -> object:
    try:
        return await call
    except Exception as error:  # noqa: BLE001 - whatever it is, the judge decides
        return error


async def an_answer_to_a_commit_is_lost(cluster: Cluster) -> None:
    await cluster.settled()
    for name in ("one", "two", "three"):
        cluster.etcd.lose_answers(2)
        await cluster.create(name)
    ends = {how: count for how, count in cluster.sim.exits.items() if how != "stopped"}
    if ends:
        cluster.sim.judge.fail("unhandled", f"processes ended: {ends}")
    steps_down = sum("stepped down" in line for line in cluster.world.trace)
    if steps_down:
        cluster.sim.judge.fail("G11", "a lost answer has cost the leadership")


@dataclass(frozen=True)
class Mutant:
    """A fault in the production code, the story that shows it, and the promise that it breaks."""

    name: str
    story: Story
    promises: frozenset[str]
    apply: Callable[[Any], None]


MUTANTS: list[Mutant] = []


def mutant(story: Story, *promises: str) -> Callable[[Callable[[Any], None]], None]:
    def register(patches: Callable[[Any], None]) -> None:
        MUTANTS.append(Mutant(patches.__name__.replace("_", "-"), story, frozenset(promises), patches))

    return register


@mutant(a_commit_comes_late, "G15")
def commits_without_the_comparison_of_the_leader(replace: Any) -> None:
    send = Term._until_definite

    async def until_definite(
        self: Term, compare: Sequence[Comparison], success: Sequence[Operation], failure: Sequence[Operation]
    ) -> tuple[Txn, bool]:
        others = [one for one in compare if one != self._mine] if success else compare
        return await send(self, others, success, failure)

    replace(Term, "_until_definite", until_definite)


@mutant(the_active_controller_is_cut_off_from_etcd, "G11")
def does_not_notice_that_the_lease_is_lost(replace: Any) -> None:
    replace(Lease, "is_over", property(lambda self: not self.lease_id))
    replace(Candidacy, "_lease_lost", lambda self: None)


@mutant(a_slow_clock_hides_the_end_of_the_lease, "G15")
def answers_what_changes_nothing_without_asking(replace: Any) -> None:
    """As a controller that was paused does when it wakes."""

    async def confirm(self: Term) -> None:
        pass

    replace(Term, "confirm", confirm)


@mutant(a_standby_has_missed_something, "G11", "unhandled")
def decides_on_the_image_of_the_standby(replace: Any) -> None:
    """It takes over, and does not read what was committed since it last heard from etcd."""
    catch_up = MetadataReader.catch_up

    async def stale(self: MetadataReader) -> Standing:
        image = self.image
        standing = await catch_up(self)
        if image.version:
            self.image = image
        return standing

    replace(MetadataReader, "catch_up", stale)


@mutant(an_answer_is_overtaken_by_the_next_controller, "G15")
def a_broker_takes_any_controller_epoch(replace: Any) -> None:
    def check_epoch(self: ControllerLink, epoch: int) -> None:
        self.controller_epoch = epoch

    replace(ControllerLink, "check_epoch", check_epoch)


@mutant(an_answer_to_a_commit_is_lost, "G11", "unhandled")
def takes_a_commit_without_an_answer_for_one_that_was_not_made(replace: Any) -> None:
    async def until_definite(
        self: Term, compare: Sequence[Comparison], success: Sequence[Operation], failure: Sequence[Operation]
    ) -> tuple[Txn, bool]:
        try:
            return await self._etcd.transact(compare, success, failure), True
        except (EtcdUnreachable, EtcdRefused) as error:
            raise CommitFailed(str(error)) from error

    replace(Term, "_until_definite", until_definite)


def tell(story: Story, session_timeout_ms: int = 1_000) -> None:
    """Raises Violation."""
    with collector_off(), World(1) as world:
        cluster = Cluster(world, session_timeout_ms)
        try:
            world.run(story(cluster))
        finally:
            cluster.sim.database.close()
