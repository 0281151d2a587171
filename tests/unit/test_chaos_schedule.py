"""The schedule of a chaos run: decided by the seed alone, bounded, and about whom it may be."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fencepost_testing.chaos.faults import (
    CONTROLLER,
    FILL_KINDS,
    FLIP_KINDS,
    MEMBER_KINDS,
    SEVERAL_KINDS,
    UNCLEAN_KINDS,
    Fault,
    FaultKind,
    Nemesis,
    nemesis_of,
)
from fencepost_testing.chaos.schedule import FIRST_FAULT_S, Shape, make_schedule
from fencepost_testing.member import ETCD_LEADER


def shape(
    brokers: int = 3, partitions: int = 4, *, cuts: bool = True, fills: bool = True, controllers: int = 1
) -> Shape:
    clients = ("loader", "mover"), ("hasty",), ("reader",)
    return Shape(brokers, partitions, *clients, cuts, fills, controllers=controllers)


SHAPES = st.builds(
    shape, st.integers(3, 6), st.integers(1, 8), cuts=st.booleans(), controllers=st.sampled_from([1, 2, 3])
)
SEEDS = st.integers(0, 2**63)
DURATIONS = st.floats(5, 300)


@settings(max_examples=30, deadline=None)
@given(SEEDS, DURATIONS, SHAPES)
def test_the_same_seed_gives_the_same_faults(seed: int, duration_s: float, of: Shape) -> None:
    assert make_schedule(seed, duration_s, of) == make_schedule(seed, duration_s, of)


def test_another_seed_gives_other_faults() -> None:
    assert make_schedule(1, 60, shape()) != make_schedule(2, 60, shape())


def test_the_schedule_of_a_seed_stays_what_it_was() -> None:
    """A report's seed must mean the same tomorrow."""
    first = make_schedule(1, 60, shape())[:3]
    assert [(fault.at_s, fault.kind.value, fault.targets) for fault in first] == [
        (2.088, "cut-one-way", ("broker-2", "broker-1")),
        (2.225, "pause-leader", ("leader-0",)),
        (2.463, "pause-controller", ("controller",)),
    ]


@settings(max_examples=30, deadline=None)
@given(SEEDS, DURATIONS, SHAPES)
def test_each_nemesis_has_one_fault_at_a_time_and_none_outlasts_the_run(
    seed: int, duration_s: float, of: Shape
) -> None:
    schedule = make_schedule(seed, duration_s, of)
    assert [fault.at_s for fault in schedule] == sorted(fault.at_s for fault in schedule)
    for nemesis in Nemesis:
        end = FIRST_FAULT_S
        for fault in schedule:
            if fault.nemesis is nemesis:
                assert fault.at_s >= end
                end = fault.at_s + fault.duration_s
        assert end <= duration_s + 0.01 or end == FIRST_FAULT_S


@settings(max_examples=30, deadline=None)
@given(SEEDS, DURATIONS, st.integers(3, 6))
def test_without_a_network_to_cut_everything_else_stays_the_same(seed: int, duration_s: float, brokers: int) -> None:
    cut = make_schedule(seed, duration_s, shape(brokers))
    uncut = make_schedule(seed, duration_s, shape(brokers, cuts=False))
    assert uncut == [fault for fault in cut if fault.nemesis is not Nemesis.NETWORK]


def test_where_no_disk_can_be_filled_none_is() -> None:
    assert {fault.kind for fault in make_schedule(1, 300, shape())} >= {*FILL_KINDS}
    assert not {fault.kind for fault in make_schedule(1, 300, shape(fills=False))} & {*FILL_KINDS}


@settings(max_examples=30, deadline=None)
@given(SEEDS, SHAPES)
def test_faults_are_about_parties_that_there_are(seed: int, of: Shape) -> None:
    leaders = {f"leader-{partition}" for partition in range(of.partitions)}
    several = {CONTROLLER, ETCD_LEADER} if of.controllers > 1 else set()
    known = {*of.parties, *leaders, *several}
    for fault in make_schedule(seed, 120, of):
        assert fault.targets
        assert set(fault.targets) <= known
        check_links(fault, known, set(of.clients))
        if fault.kind is FaultKind.MOVE_PARTITION:
            assert len(set(fault.targets)) == 3
        if fault.kind in {FaultKind.MOVE_PARTITION, *FLIP_KINDS, *UNCLEAN_KINDS}:
            assert 0 <= fault.partition < of.partitions


def check_links(fault: Fault, parties: set[str], clients: set[str]) -> None:
    assert bool(fault.links) == (fault.nemesis is Nemesis.NETWORK)
    for one, other in fault.links:
        assert one != other
        assert {one, other} <= parties
        assert not {one, other} <= clients, "clients do not talk to one another"


def test_a_minute_meets_every_kind_of_broker_and_network_fault() -> None:
    kinds = {fault.kind for seed in range(5) for fault in make_schedule(seed, 60, shape())}
    assert kinds == set(FaultKind) - {*MEMBER_KINDS, *SEVERAL_KINDS}
    for seed in range(5):
        met = {fault.kind for fault in make_schedule(seed, 60, shape())}
        missed = {kind for kind in FaultKind if nemesis_of(kind) in (Nemesis.BROKERS, Nemesis.NETWORK)} - met
        assert len(missed - set(SEVERAL_KINDS)) <= 2


def test_several_controllers_and_their_etcd_are_harmed_one_by_one_and_with_all_brokers() -> None:
    schedules = [make_schedule(seed, 60, shape(controllers=3)) for seed in range(5)]
    assert {fault.kind for schedule in schedules for fault in schedule} == set(FaultKind) - set(MEMBER_KINDS)
    for fault in (fault for schedule in schedules for fault in schedule):
        match fault.kind:
            case FaultKind.KILL_ALL:
                assert set(fault.targets) == {f"{kind}-{n}" for kind in ("controller", "broker") for n in (1, 2, 3)}
            case FaultKind.KILL_CONTROLLER | FaultKind.ISOLATE_CONTROLLER:
                assert fault.targets == ("controller",), "the active one, whoever that is"
            case FaultKind.KILL_MOST_OF_ETCD:
                assert len(set(fault.targets)) == 2
                assert set(fault.targets) < {"etcd-1", "etcd-2", "etcd-3"}


def test_members_of_groups_are_killed_and_paused_and_without_named_producers_no_name_is_taken_over() -> None:
    of = Shape(3, 4, (), ("loader", "steady"), ("reader",), cuts=True, members=("m1", "m2"), elections=False)
    met = {fault.kind for seed in range(5) for fault in make_schedule(seed, 60, of)}
    assert met == set(FaultKind) - {FaultKind.TAKE_OVER, *UNCLEAN_KINDS, *SEVERAL_KINDS}
    victims = {party for fault in make_schedule(1, 120, of) if fault.kind in MEMBER_KINDS for party in fault.targets}
    assert victims == {"m1", "m2"}
    longest = max(fault.duration_s for fault in make_schedule(1, 120, of) if fault.kind is FaultKind.PAUSE_MEMBER)
    assert longest > 7, "longer than a session"
