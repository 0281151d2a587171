"""What happens when: the faults of a run, drawn from its seed.

Pure: the same seed, duration and shape give the same schedule. A schedule names roles where the victim depends on what
will have happened by then ("leader-2"); the nemesis finds out who that is.

Several nemeses work at the same time, each with its own random numbers, so that a run without network cuts has the same
other faults: brokers, controller, etcd, network, clients, operator, disks, elections. Each has one fault at a time. A
nemesis deals its kinds of fault from a shuffled deck, so that even a short run meets most of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fencepost_testing.chaos.faults import (
    BOUNCES,
    CONTROLLER,
    FILL_KINDS,
    FLIP_KINDS,
    NETWORK_KINDS,
    RESTORE_KINDS,
    SERVER_KILLS,
    SEVERAL_KINDS,
    UNCLEAN_KINDS,
    Fault,
    FaultKind,
    Link,
    Nemesis,
    Party,
    broker_party,
    leader_party,
    nemesis_of,
)
from fencepost_testing.cluster_folder import nodes_of
from fencepost_testing.member import ETCD, ETCD_LEADER, folder_of

REPLICATION_FACTOR = 3
FIRST_FAULT_S = 2.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Whom a schedule can harm."""

    brokers: int
    partitions: int
    named_producers: tuple[Party, ...]
    anonymous_producers: tuple[Party, ...]
    consumers: tuple[Party, ...]
    cuts: bool  # whether links can be cut
    fills: bool = True  # whether disks can be filled
    members: tuple[Party, ...] = ()  # of groups
    elections: bool = True  # whether operators order unclean ones
    controllers: int = 1  # several have an etcd

    @property
    def broker_parties(self) -> list[Party]:
        return [broker_party(broker) for broker in range(1, self.brokers + 1)]

    @property
    def clients(self) -> list[Party]:
        return [*self.named_producers, *self.anonymous_producers, *self.consumers, *self.members]

    @property
    def controller_parties(self) -> list[Party]:
        return [party for party in self.servers if party.startswith(CONTROLLER)]

    @property
    def etcd_parties(self) -> list[Party]:
        """Where there are several controllers."""
        return [party for party in self.servers if party.startswith(ETCD)]

    @property
    def servers(self) -> list[Party]:
        return [folder_of(node) for node in nodes_of(self.brokers, self.controllers)]

    @property
    def parties(self) -> list[Party]:
        return [*self.servers, *self.clients]


def make_schedule(seed: int, duration_s: float, shape: Shape) -> list[Fault]:
    """All faults that begin within `duration_s`, by time; none lasts beyond it."""
    faults: list[Fault] = []
    for nemesis in Nemesis:
        if not _can_harm(nemesis, shape):
            continue
        faults += _faults_of(nemesis, random.Random(f"{seed}/{nemesis}"), duration_s, shape)
    return sorted(faults, key=lambda fault: (fault.at_s, fault.kind))


def _can_harm(nemesis: Nemesis, shape: Shape) -> bool:
    match nemesis:
        case Nemesis.NETWORK:
            return shape.cuts
        case Nemesis.ETCD:
            return shape.controllers > 1
        case Nemesis.ELECTIONS:
            return shape.elections
        case Nemesis.MEMBERS:
            return bool(shape.members)
        case _:
            return True


_GAP_S = {  # least and most between two faults of one nemesis
    Nemesis.BROKERS: (0.5, 3.0),
    Nemesis.CONTROLLER: (3.0, 10.0),
    Nemesis.ETCD: (3.0, 10.0),
    Nemesis.NETWORK: (0.5, 4.0),
    Nemesis.CLIENTS: (2.0, 6.0),
    Nemesis.OPERATOR: (2.0, 6.0),
    Nemesis.DISKS: (3.0, 9.0),
    Nemesis.ELECTIONS: (8.0, 25.0),
    Nemesis.MEMBERS: (2.0, 7.0),
}


def _faults_of(nemesis: Nemesis, rng: random.Random, duration_s: float, shape: Shape) -> Iterator[Fault]:
    kinds = [
        kind
        for kind in FaultKind
        if nemesis_of(kind) is nemesis
        and (shape.fills or kind not in FILL_KINDS)
        and (shape.named_producers or kind is not FaultKind.TAKE_OVER)
        and (shape.controllers > 1 or kind not in SEVERAL_KINDS)
    ]
    deck = _deal(kinds, rng)
    at_s = FIRST_FAULT_S + rng.uniform(0, _GAP_S[nemesis][0])
    while True:
        kind = next(deck)
        fault_s = _duration_s(kind, rng)
        targets, links = _AIM[kind](kind, rng, shape)
        partition = rng.randrange(shape.partitions) if kind in _OF_A_PARTITION else -1
        if at_s + fault_s > duration_s:
            return
        yield Fault(round(at_s, 3), round(fault_s, 3), kind, targets, links, partition)
        at_s += fault_s + rng.uniform(*_GAP_S[nemesis])


def _deal(kinds: list[FaultKind], rng: random.Random) -> Iterator[FaultKind]:
    while True:
        deck = list(kinds)
        rng.shuffle(deck)
        yield from deck


def _duration_s(kind: FaultKind, rng: random.Random) -> float:
    if kind in _KILLS or kind in BOUNCES:
        return rng.uniform(0.0, 3.0)
    if kind is FaultKind.MOVE_PARTITION or kind in FLIP_KINDS:
        return 0.0  # the request is the fault; a flipped byte stays until it is found
    if kind in UNCLEAN_KINDS:
        return rng.uniform(0.5, 3.0)  # in which the others go on
    if kind in RESTORE_KINDS:
        return rng.uniform(1.0, 4.0)  # how old the copy is
    if kind is FaultKind.TAKE_OVER:
        return rng.uniform(0.5, 2.0)
    if kind is FaultKind.PAUSE_MEMBER:
        return rng.choice([rng.uniform(0.2, 2.0), rng.uniform(7.0, 12.0)])  # the sessions are of 6 s
    return rng.choice([rng.uniform(0.2, 1.0), rng.uniform(2.0, 6.0)])  # too short to be noticed, or long enough


_KILLS = SERVER_KILLS | {FaultKind.KILL_PRODUCER, FaultKind.KILL_MEMBER}

_OF_A_PARTITION = {FaultKind.MOVE_PARTITION, *FLIP_KINDS, *UNCLEAN_KINDS}

Aim = tuple[tuple[Party, ...], tuple[Link, ...]]


def _a_broker(kind: FaultKind, rng: random.Random, shape: Shape) -> Aim:
    return (rng.choice(shape.broker_parties),), ()


def _a_leader(kind: FaultKind, rng: random.Random, shape: Shape) -> Aim:
    return (leader_party(rng.randrange(shape.partitions)),), ()


def _two_brokers(kind: FaultKind, rng: random.Random, shape: Shape) -> Aim:
    return tuple(rng.sample(shape.broker_parties, min(2, shape.brokers))), ()


def _everybody(kind: FaultKind, rng: random.Random, shape: Shape) -> Aim:
    return (*shape.controller_parties, *shape.broker_parties), ()


def _brokers(kind: FaultKind, rng: random.Random, shape: Shape) -> Aim:
    return tuple(shape.broker_parties), ()


def _the_controller(kind: FaultKind, rng: random.Random, shape: Shape) -> Aim:
    return (CONTROLLER,), ()


def _the_etcd_leader(kind: FaultKind, rng: random.Random, shape: Shape) -> Aim:
    return (ETCD_LEADER,), ()


def _of_etcd(members: int) -> Callable[[FaultKind, random.Random, Shape], Aim]:
    return lambda kind, rng, shape: (tuple(rng.sample(shape.etcd_parties, members)), ())


def _any_of(parties: Callable[[Shape], tuple[Party, ...]]) -> Callable[[FaultKind, random.Random, Shape], Aim]:
    return lambda kind, rng, shape: ((rng.choice(parties(shape)),), ())


def _new_replicas(kind: FaultKind, rng: random.Random, shape: Shape) -> Aim:
    return tuple(rng.sample(shape.broker_parties, min(REPLICATION_FACTOR, shape.brokers))), ()


def _both_ways(one: Party, other: Party) -> tuple[Link, ...]:
    return ((one, other), (other, one))


def _cut(kind: FaultKind, rng: random.Random, shape: Shape) -> Aim:
    one, other = rng.sample(shape.broker_parties, 2)
    client = rng.choice(shape.clients)
    leader = leader_party(rng.randrange(shape.partitions))
    match kind:
        case FaultKind.CUT_ONE_WAY:
            return (one, other), ((one, other),)
        case FaultKind.CUT_PAIR:
            return (one, other), _both_ways(one, other)
        case FaultKind.CUT_FROM_CONTROLLER:
            return (one, CONTROLLER), rng.choice(
                [((one, CONTROLLER),), ((CONTROLLER, one),), _both_ways(one, CONTROLLER)]
            )
        case FaultKind.CUT_LEADER_FROM_CONTROLLER:
            return (leader, CONTROLLER), _both_ways(leader, CONTROLLER)
        case FaultKind.CUT_CLIENT:
            return (client, one), _both_ways(client, one)
        case FaultKind.CUT_ANSWERS:
            return (one, client), ((one, client),)
        case FaultKind.ISOLATE_BROKER:
            return (one,), _between(shape, [one], [party for party in shape.parties if party != one])
        case FaultKind.ISOLATE_CONTROLLER:
            return (CONTROLLER,), _between(shape, [CONTROLLER], shape.servers)
        case FaultKind.ISOLATE_ETCD_LEADER:
            return (ETCD_LEADER,), _between(shape, [ETCD_LEADER], shape.servers)
        case FaultKind.ISOLATE_LEADER:
            return (leader,), _between(shape, [leader], shape.parties)
        case _:
            here = [one, *rng.sample(shape.clients, len(shape.clients) // 2)]
            return tuple(here), _between(shape, here, [party for party in shape.parties if party not in here])


def _between(shape: Shape, here: list[Party], there: list[Party]) -> tuple[Link, ...]:
    """Clients do not talk to one another."""
    pairs = ((one, other) for one in here for other in there if not {one, other} <= set(shape.clients))
    return tuple(link for one, other in pairs for link in _both_ways(one, other))


_AIM: dict[FaultKind, Callable[[FaultKind, random.Random, Shape], Aim]] = {
    FaultKind.KILL_BROKER: _a_broker,
    FaultKind.KILL_LEADER: _a_leader,
    FaultKind.KILL_TWO_BROKERS: _two_brokers,
    FaultKind.KILL_ALL: _everybody,
    FaultKind.BOUNCE_BROKER: _a_broker,
    FaultKind.BOUNCE_LEADER: _a_leader,
    FaultKind.PAUSE_BROKER: _a_broker,
    FaultKind.PAUSE_LEADER: _a_leader,
    FaultKind.KILL_CONTROLLER: _the_controller,
    FaultKind.BOUNCE_CONTROLLER: _the_controller,
    FaultKind.PAUSE_CONTROLLER: _the_controller,
    FaultKind.KILL_ETCD_MEMBER: _of_etcd(1),
    FaultKind.KILL_MOST_OF_ETCD: _of_etcd(2),
    FaultKind.KILL_ETCD_LEADER: _the_etcd_leader,
    FaultKind.BOUNCE_ETCD_LEADER: _the_etcd_leader,
    FaultKind.PAUSE_ETCD_LEADER: _the_etcd_leader,
    FaultKind.KILL_PRODUCER: _any_of(lambda shape: (*shape.named_producers, *shape.anonymous_producers)),
    FaultKind.PAUSE_PRODUCER: _any_of(lambda shape: (*shape.named_producers, *shape.anonymous_producers)),
    FaultKind.TAKE_OVER: _any_of(lambda shape: shape.named_producers),
    FaultKind.PAUSE_CONSUMER: _any_of(lambda shape: shape.consumers),
    FaultKind.KILL_MEMBER: _any_of(lambda shape: shape.members),
    FaultKind.PAUSE_MEMBER: _any_of(lambda shape: shape.members),
    FaultKind.MOVE_PARTITION: _new_replicas,
    **dict.fromkeys(NETWORK_KINDS, _cut),
    **dict.fromkeys(RESTORE_KINDS, _a_broker),
    **dict.fromkeys(FLIP_KINDS, _brokers),
    FaultKind.FILL_DISK: _a_broker,
    FaultKind.FILL_LEADERS_DISK: _a_leader,
    FaultKind.FILL_ALL_DISKS: _brokers,
    **dict.fromkeys(UNCLEAN_KINDS, _a_broker),
}
