"""The kinds of fault, and one fault: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# "controller", "controller-1", "etcd-1", "broker-2", a client's role; or who plays a role at that time: "leader-0", the
# leader of partition 0, "controller", the active one of several, "etcd:leader".
Party = str
Link = tuple[Party, Party]  # what the first sends to the second

CONTROLLER = "controller"


class SkippedFault(Exception):
    """A fault that could not be carried out, and why."""


class Nemesis(StrEnum):
    BROKERS = "brokers"
    CONTROLLER = "controller"
    ETCD = "etcd"
    NETWORK = "network"
    CLIENTS = "clients"
    OPERATOR = "operator"
    DISKS = "disks"
    ELECTIONS = "elections"
    MEMBERS = "members"


class FaultKind(StrEnum):
    """The kinds of fault."""

    KILL_BROKER = "kill-broker"  # kill -9, and a restart
    KILL_LEADER = "kill-leader"
    KILL_TWO_BROKERS = "kill-two-brokers"
    KILL_ALL = "kill-all"  # every broker and every controller
    BOUNCE_BROKER = "bounce-broker"  # clean shutdown, and a restart
    BOUNCE_LEADER = "bounce-leader"
    PAUSE_BROKER = "pause-broker"  # SIGSTOP, SIGCONT
    PAUSE_LEADER = "pause-leader"

    KILL_CONTROLLER = "kill-controller"
    BOUNCE_CONTROLLER = "bounce-controller"
    PAUSE_CONTROLLER = "pause-controller"

    # Where there are several controllers.
    KILL_ETCD_MEMBER = "kill-etcd-member"
    KILL_ETCD_LEADER = "kill-etcd-leader"
    KILL_MOST_OF_ETCD = "kill-most-of-etcd"  # nothing can be decided meanwhile
    BOUNCE_ETCD_LEADER = "bounce-etcd-leader"
    PAUSE_ETCD_LEADER = "pause-etcd-leader"

    CUT_ONE_WAY = "cut-one-way"  # between two brokers
    CUT_PAIR = "cut-pair"  # between two brokers, both ways
    CUT_FROM_CONTROLLER = "cut-from-controller"  # a broker
    CUT_LEADER_FROM_CONTROLLER = "cut-leader-from-controller"
    CUT_CLIENT = "cut-client"  # from one broker
    CUT_ANSWERS = "cut-answers"  # what a broker sends to a client
    ISOLATE_BROKER = "isolate-broker"  # from everyone
    ISOLATE_LEADER = "isolate-leader"
    ISOLATE_CONTROLLER = "isolate-controller"  # the active one of several
    ISOLATE_ETCD_LEADER = "isolate-etcd-leader"
    SPLIT = "split"  # a broker and some clients here, the others and the controller there

    KILL_PRODUCER = "kill-producer"  # kill -9; another one takes its place
    PAUSE_PRODUCER = "pause-producer"
    TAKE_OVER = "take-over"  # a named producer is paused, another one takes its name, the first wakes
    PAUSE_CONSUMER = "pause-consumer"

    MOVE_PARTITION = "move-partition"  # to other brokers, or to the same in another order

    RESTORE_RUNNING = "restore-running"  # kill -9, and a restart with a copy of its folder, made earlier while it ran
    RESTORE_STOPPED = "restore-stopped"  # the same with a clean shutdown, and a copy made after another one
    FLIP_LEADERS_BYTE = "flip-leaders-byte"  # a bit of a stored batch changes
    FLIP_FOLLOWERS_BYTE = "flip-followers-byte"
    FILL_DISK = "fill-disk"  # of a broker; it has room again afterwards
    FILL_LEADERS_DISK = "fill-leaders-disk"
    FILL_ALL_DISKS = "fill-all-disks"

    # All replicas in sync are killed, and one that lags is elected.
    UNCLEAN_AFTER_PAUSE = "unclean-after-pause"  # it had been paused
    UNCLEAN_AFTER_KILL = "unclean-after-kill"  # it had been killed

    # Of groups.
    KILL_MEMBER = "kill-member"  # kill -9; another one takes its place
    PAUSE_MEMBER = "pause-member"  # for less than its session, or for longer


ETCD_KINDS = (
    FaultKind.KILL_ETCD_MEMBER,
    FaultKind.KILL_ETCD_LEADER,
    FaultKind.KILL_MOST_OF_ETCD,
    FaultKind.BOUNCE_ETCD_LEADER,
    FaultKind.PAUSE_ETCD_LEADER,
)
# Of several controllers only.
SEVERAL_KINDS = (*ETCD_KINDS, FaultKind.ISOLATE_CONTROLLER, FaultKind.ISOLATE_ETCD_LEADER)
_CONTROLLER_KINDS = (FaultKind.KILL_CONTROLLER, FaultKind.BOUNCE_CONTROLLER, FaultKind.PAUSE_CONTROLLER)
NETWORK_KINDS = (
    FaultKind.CUT_ONE_WAY,
    FaultKind.CUT_PAIR,
    FaultKind.CUT_FROM_CONTROLLER,
    FaultKind.CUT_LEADER_FROM_CONTROLLER,
    FaultKind.CUT_CLIENT,
    FaultKind.CUT_ANSWERS,
    FaultKind.ISOLATE_BROKER,
    FaultKind.ISOLATE_LEADER,
    FaultKind.SPLIT,
    FaultKind.ISOLATE_CONTROLLER,
    FaultKind.ISOLATE_ETCD_LEADER,
)
RESTORE_KINDS = (FaultKind.RESTORE_RUNNING, FaultKind.RESTORE_STOPPED)
FLIP_KINDS = (FaultKind.FLIP_LEADERS_BYTE, FaultKind.FLIP_FOLLOWERS_BYTE)
FILL_KINDS = (FaultKind.FILL_DISK, FaultKind.FILL_LEADERS_DISK, FaultKind.FILL_ALL_DISKS)
UNCLEAN_KINDS = (FaultKind.UNCLEAN_AFTER_PAUSE, FaultKind.UNCLEAN_AFTER_KILL)
MEMBER_KINDS = (FaultKind.KILL_MEMBER, FaultKind.PAUSE_MEMBER)
_CLIENT_KINDS = (FaultKind.KILL_PRODUCER, FaultKind.PAUSE_PRODUCER, FaultKind.TAKE_OVER, FaultKind.PAUSE_CONSUMER)


SERVER_KILLS = frozenset(
    {
        FaultKind.KILL_BROKER,
        FaultKind.KILL_LEADER,
        FaultKind.KILL_TWO_BROKERS,
        FaultKind.KILL_ALL,
        FaultKind.KILL_CONTROLLER,
        FaultKind.KILL_ETCD_MEMBER,
        FaultKind.KILL_ETCD_LEADER,
        FaultKind.KILL_MOST_OF_ETCD,
    }
)
BOUNCES = frozenset(
    {
        FaultKind.BOUNCE_BROKER,
        FaultKind.BOUNCE_LEADER,
        FaultKind.BOUNCE_CONTROLLER,
        FaultKind.BOUNCE_ETCD_LEADER,
    }
)


def nemesis_of(kind: FaultKind) -> Nemesis:
    if kind in _CONTROLLER_KINDS:
        return Nemesis.CONTROLLER
    if kind in ETCD_KINDS:
        return Nemesis.ETCD
    if kind in NETWORK_KINDS:
        return Nemesis.NETWORK
    if kind is FaultKind.MOVE_PARTITION:
        return Nemesis.OPERATOR
    if kind in (*RESTORE_KINDS, *FLIP_KINDS, *FILL_KINDS):
        return Nemesis.DISKS
    if kind in UNCLEAN_KINDS:
        return Nemesis.ELECTIONS
    if kind in MEMBER_KINDS:
        return Nemesis.MEMBERS
    return Nemesis.CLIENTS if kind in _CLIENT_KINDS else Nemesis.BROKERS


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, `at_s` from the run's start. It is undone after `duration_s`."""

    at_s: float
    duration_s: float
    kind: FaultKind
    targets: tuple[Party, ...]  # the processes that it hits; of a cut: whom it is about; of a move: to whom
    links: tuple[Link, ...] = ()
    partition: int = -1  # of a move, a flipped byte, an election

    @property
    def nemesis(self) -> Nemesis:
        return nemesis_of(self.kind)


def broker_party(broker: int) -> Party:
    return f"broker-{broker}"


def leader_party(partition: int) -> Party:
    return f"leader-{partition}"
