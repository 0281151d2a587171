"""etcd in a simulated world: three members that die, pause and are cut off, and G15, which is judged where they agree.

A member serves as long as it reaches a majority: the others' processes run, and no link between them is cut. What was
proposed is carried out once that is so, whether its caller still waits or not. The agreed state outlives every process.

**G15**: under one controller epoch one controller decides, and no decision of an older one takes effect after a newer one's
first. Here that is:

- a log entry is written by the very process whose leadership stands at that moment;
- an answer under an epoch is to a request that arrived before a newer epoch's first commit;
- a broker's newest controller epoch never falls while its process lives.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fencepost_controller.store.etcd.client import EtcdAccess, EtcdClient
from fencepost_controller.store.etcd.layout import Keys, decode_content
from fencepost_controller.store.etcd.shared import SharedMetadata
from fencepost_node.broker import Broker
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.v1 import common_pb2
from fencepost_proto.runtime.host import Host
from tests.fake_etcd import EtcdCluster, EtcdMember
from tests.simulation.judge import Judge
from tests.simulation.network import Tap
from tests.simulation.process import SimProcess, State
from tests.simulation.world import World

MEMBERS = 3
TICK_S = 0.1
COMMIT_S = (0.001, 0.008)  # of one write: a round trip and a sync
LATE_S = 0.5  # at most, until a request that was answered with an error is carried out
CONTROLLER_SERVICE = "/fencepost.v1.Controller/"


def etcd_node(number: int) -> str:
    return f"etcd-{number}"


def etcd_address(number: int) -> str:
    return f"etcd-{number}:2379"


class SimEtcd:
    """The members of one world, and who has written what."""

    def __init__(self, world: World, judge: Judge) -> None:
        self.world = world
        self.judge = judge
        self.nodes = tuple(etcd_node(number) for number in range(1, MEMBERS + 1))
        self.keys = Keys(b"/simulated/")
        self.cluster = EtcdCluster(world.loop.time)
        self.cluster.on_write = self._written
        self.random = world.chance("etcd")
        self.members: dict[str, EtcdMember] = {}
        self._image = MetadataImage()
        self._author: SimProcess | None = None  # whose transaction is carried out now
        self._leader_author: SimProcess | None = None  # who has created the leader key
        self.first_commits: dict[int, float] = {}  # by controller epoch
        self._seen: dict[int, tuple[Broker, int]] = {}  # newest controller epoch of each broker
        for method in (
            "AlterPartition",
            "AllocateProducerIds",
            "InitProducerId",
            "DeleteRecords",
            "StartReplicaOver",
            "Session",
        ):
            world.network.taps[CONTROLLER_SERVICE + method] = AnswerTap(self)

    # ---- Its processes ----

    async def run_member(self, node: str, host: Host) -> None:
        member = EtcdMember(
            self.cluster,
            reaches_majority=lambda: self._reaches_majority(node),
            delay_s=lambda: self.random.uniform(*COMMIT_S),
            author_of=_client_of,
        )
        member.on_author = self._carries_out
        self.members[node] = member
        wire = host.wire.with_carrier("grpc")
        server = wire.server()
        member.add_to(server)
        await wire.bind(server, f"{node}:2379")
        await server.start()
        await asyncio.Event().wait()

    def _runs(self, node: str) -> bool:
        process = self.world.machine(node).process
        return process is not None and process.state is State.RUNNING

    def _reaches_majority(self, node: str) -> bool:
        network = self.world.network
        reached = [
            other
            for other in self.nodes
            if self._runs(other)
            and (other == node or not (network.link(node, other).cut or network.link(other, node).cut))
        ]
        return self._runs(node) and len(reached) > MEMBERS // 2

    async def tick_for_ever(self) -> None:
        """Leases expire, and majorities come and go."""
        while True:
            await asyncio.sleep(TICK_S)
            self.cluster.majority(any(map(self._reaches_majority, self.nodes)))
            self.cluster.expire_leases()

    def shared(self, host: Host) -> SharedMetadata:
        """For one controller."""
        addresses = [etcd_address(number) for number in range(1, MEMBERS + 1)]
        host.random.shuffle(addresses)
        return SharedMetadata(EtcdClient(host.wire, EtcdAccess(tuple(addresses))), self.keys)

    # ---- Faults ----

    def lose_answers(self, count: int) -> None:
        for member in self.members.values():
            member.lost_answers = count

    def be_late(self, count: int) -> None:
        for member in self.members.values():
            member.late_requests, member.late_s = count, self.random.random() * LATE_S

    def gain(self, seconds: float) -> None:
        """The clock by which leases end goes ahead."""
        for lease in self.cluster.leases.values():
            lease.expires_at -= seconds

    def heal(self) -> None:
        for member in self.members.values():
            member.lost_answers = member.late_requests = 0

    # ---- The judge ----

    def _carries_out(self, author: object) -> None:
        self._author = author if isinstance(author, SimProcess) else None

    def _written(self, revision: int, events: list[Any]) -> None:
        author, self._author = self._author, None
        for event in events:
            if event.kv.key == self.keys.leader and event.kv.value:
                self._leader_author = author
            version = self.keys.version_of(event.kv.key)
            if version is None or not event.kv.value:
                continue
            leader = self.cluster.keys.get(self.keys.leader)
            if leader is None or author is not self._leader_author:
                who = self._leader_author if leader is not None else None
                self.judge.fail(
                    "G15", f"{author!r} has committed metadata version {version}, and {who!r} is the leader"
                )
                return
            self.first_commits.setdefault(leader.create_revision, self.world.now)
            entry = decode_content(event.kv.value, "an entry")
            assert not entry.pieces, "larger than a simulation's commits are"
            self._image = self._image.apply(common_pb2.MetadataDelta.FromString(entry.data))
            self.judge.metadata(self._image)

    def newer_since(self, epoch: int) -> float:
        """When the first commit of a newer epoch was made; infinity: not yet."""
        return min((at for other, at in self.first_commits.items() if other > epoch), default=float("inf"))

    def sweep(self, brokers: dict[int, Broker]) -> None:
        """Look at what the brokers take for the newest controller epoch."""
        for broker_id, broker in brokers.items():
            before, epoch = self._seen.get(broker_id, (broker, 0))
            now = broker._link.controller_epoch
            if before is broker and now < epoch:
                self.judge.fail("G15", f"broker {broker_id} follows controller epoch {now} after {epoch}")
            self._seen[broker_id] = (broker, now)


class AnswerTap(Tap):
    """Compares the epoch of an answer with those that had begun when its request arrived."""

    def __init__(self, etcd: SimEtcd) -> None:
        self._etcd = etcd
        self._arrived: dict[object, float] = {}

    def request(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None:
        self._arrived.setdefault(call, self._etcd.world.now)

    def response(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None:
        if hasattr(message, "registered"):
            if message.WhichOneof("kind") != "registered":
                return
            epoch = message.registered.controller_epoch
        elif message.error.code in (ErrorCode.NOT_CONTROLLER, ErrorCode.KAFKA_STORAGE_ERROR):
            return
        else:
            epoch = message.controller_epoch
        arrived = self._arrived.get(call, self._etcd.world.now)
        since = self._etcd.newer_since(epoch)
        if arrived > since:
            self._etcd.judge.fail(
                "G15",
                f"{server!r} answers {client!r} under controller epoch {epoch} a request of {arrived:.3f} s; a newer one "
                f"decides since {since:.3f} s",
            )


def _client_of(context: Any) -> object:
    return context._stream.connection.client
