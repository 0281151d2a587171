"""Which start of the controller committed a version: the history, and what a broker's record is to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencepost_controller.decisions.lineage import (
    KnownHistory,
    MetadataWentBack,
    UnknownHistory,
    check_known_version,
)
from fencepost_proto.protocol.lineage import MAX_LINEAGES, UNKNOWN_LINEAGE, Lineage, LineageStart, VersionCheck
from fencepost_proto.protocol.metadata import BrokerRegistration, ClusterIdentity, MetadataImage, from_proto, to_proto

HISTORY = Lineage((LineageStart(7, 1), LineageStart(8, 10), LineageStart(9, 20)))


@pytest.mark.parametrize(
    ("version", "lineage_id", "expected"),
    [
        (0, UNKNOWN_LINEAGE, VersionCheck.SOUND),  # a new folder
        (1, 7, VersionCheck.SOUND),
        (9, 7, VersionCheck.SOUND),
        (10, 8, VersionCheck.SOUND),
        (25, 9, VersionCheck.SOUND),
        (26, 9, VersionCheck.AHEAD),
        (26, 4, VersionCheck.AHEAD),
        (10, 7, VersionCheck.FORKED),  # the backup was older than this version of that start
        (15, 4, VersionCheck.FORKED),
        (25, 8, VersionCheck.FORKED),
        (15, UNKNOWN_LINEAGE, VersionCheck.SOUND),
    ],
)
def test_a_known_version_is_one_of_the_history_or_ahead_of_it_or_of_another(
    version: int, lineage_id: int, expected: VersionCheck
) -> None:
    assert HISTORY.check(version, lineage_id, newest=25) is expected


def test_below_the_first_start_that_is_kept_nothing_is_said() -> None:
    assert Lineage(HISTORY.starts[1:]).check(5, 4, newest=25) is VersionCheck.SOUND


def test_the_history_is_bounded_and_keeps_the_newest() -> None:
    history = Lineage()
    for number in range(1, MAX_LINEAGES + 11):
        history = history.begin(number, number * 2)
    assert len(history.starts) == MAX_LINEAGES
    assert history.starts[0] == LineageStart(11, 22)
    assert history.current_id == MAX_LINEAGES + 10


def test_the_history_travels_with_the_metadata() -> None:
    assert from_proto(to_proto(HISTORY)) == HISTORY
    image = MetadataImage().with_changes(25, {HISTORY.key: HISTORY})
    assert image.lineage == HISTORY
    assert HISTORY in image.entities()


@given(starts=st.lists(st.integers(1, 5), min_size=1, max_size=12), cut=st.data())
def test_a_broker_that_followed_one_store_is_sound_to_it_and_never_to_a_fork_that_has_passed_it(
    starts: list[int], cut: st.DataObject
) -> None:
    """Law: a copy of the store is taken at some start, and both go on. What brokers learn of the one after that is ahead
    of the other, or forked, however far the other has gone."""
    version, history = 0, Lineage()
    for number, commits in enumerate(starts, 1):
        history = history.begin(number, version + 1)
        version += commits
    taken_at = cut.draw(st.integers(0, version))
    backup = Lineage(tuple(start for start in history.starts if start.first_version <= taken_at))
    fork = backup.begin(100, taken_at + 1)
    fork_version = taken_at + cut.draw(st.integers(1, 30))
    for known in range(1, version + 1):
        lineage_id = history.id_at(known)
        assert history.check(known, lineage_id, version) is VersionCheck.SOUND
        here = fork.check(known, lineage_id, fork_version)
        assert (here is VersionCheck.SOUND) == (known <= taken_at)
        if here is not VersionCheck.SOUND and backup.starts:
            image = MetadataImage(
                version=fork_version, cluster=ClusterIdentity("one"), lineage=fork, brokers=IMAGE.brokers
            )
            with pytest.raises(MetadataWentBack):  # believed: both begin with the same start
                look(image, 1, "one", known, lineage_id, history.oldest_id)


IMAGE = MetadataImage(
    version=25,
    cluster=ClusterIdentity("one"),
    lineage=HISTORY,
    brokers={1: BrokerRegistration(1, "h:1", 3, "x", fenced=False)},
)


def look(image: MetadataImage, *known: Any) -> None:
    check_known_version(image, KnownHistory(*known))


def test_a_store_that_has_gone_back_is_named() -> None:
    look(IMAGE, 1, "one", 25, 9)
    with pytest.raises(MetadataWentBack, match=r"it is at metadata version 25, and broker 1 knows version 26"):
        look(IMAGE, 1, "one", 26, 9)
    with pytest.raises(MetadataWentBack, match=r"metadata version 22 of lineage 0000000000000004.* 0000000000000009"):
        look(IMAGE, 1, "one", 22, 4, 7)


@pytest.mark.parametrize(("version", "lineage_id"), [(2**62, 4), (26, UNKNOWN_LINEAGE), (22, 4)])
def test_who_shows_no_lineage_of_this_store_is_not_believed(version: int, lineage_id: int) -> None:
    for oldest in (UNKNOWN_LINEAGE, 4):
        with pytest.raises(UnknownHistory, match=rf"broker 1 says .* version {version} .* knows none of its lineages"):
            look(IMAGE, 1, "one", version, lineage_id, oldest)
    with pytest.raises(MetadataWentBack):
        look(IMAGE, 1, "one", version, lineage_id, 7)


def test_a_new_store_among_old_brokers_is_reported_and_a_stranger_among_known_ones_is_not_its_fault() -> None:
    with pytest.raises(MetadataWentBack, match=r"store is new: .* broker 2 belongs to cluster one and knows .* 57"):
        look(MetadataImage(version=1, cluster=ClusterIdentity("new")), 2, "one", 57, 9)
    look(IMAGE, 2, "another", 57, 9)  # refused by the registration's own check
    look(MetadataImage(version=1, cluster=ClusterIdentity("new")), 2, "")
