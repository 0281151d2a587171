"""Members of groups in a history: for each thing that can be wrong a history that shows it, and right ones that pass."""

from __future__ import annotations

import random

from fencepost.history_format import Operation, OperationType, from_line, to_line
from fencepost_testing.history_check import Anomaly
from fencepost_testing.history_check.spans import Spans
from tests.unit.history_story import TOPIC, Story

GROUP = "billing"


class GroupStory(Story):
    """Members of one group, on partition 0, whose ten records are a, b, …"""

    def __init__(self) -> None:
        super().__init__()
        self._commits: dict[str, int] = {}
        self.acked(*"abcdefghij")

    def given(self, member: str) -> None:
        self.add(Operation(member, 0, "info", "given", 0, TOPIC, 0, group=GROUP))
        self.seek(-1, member)

    def reads(self, member: str, first: int, end: int) -> None:
        self.poll(first, *"abcdefghij"[first:end], process=member)

    def sends(self, member: str, offset: int) -> Operation:
        self._commits[member] = self._commits.get(member, 0) + 1
        commit = Operation(member, 0, "invoke", "commit", self._commits[member], TOPIC, 0, offset=offset, group=GROUP)
        self.add(commit)
        return commit

    def found(self, *, foreign_records: bool = False) -> dict[Anomaly, int]:
        self.final(0, *"abcdefghij")
        return super().found(foreign_records=foreign_records)

    def ends(self, commit: Operation, kind: OperationType = "ok") -> None:
        self.add(commit._replace(type=kind, offset=-1))

    def commits(self, member: str, offset: int, kind: OperationType = "ok") -> None:
        self.ends(self.sends(member, offset), kind)


def test_a_partition_that_goes_from_member_to_member_and_back_is_right() -> None:
    story = GroupStory()
    story.given("m1")
    story.reads("m1", 0, 4)
    story.commits("m1", 4)
    story.given("m2")
    story.reads("m2", 4, 6)
    story.commits("m1", 5, "fail")
    story.commits("m2", 6)
    story.given("m1")
    story.reads("m1", 6, 10)
    story.commits("m1", 10)
    assert story.found() == {}
    assert story.check().commits == 3


def test_a_member_that_was_paused_and_whose_commit_is_taken_after_anothers_is_a_second_owner() -> None:
    story = GroupStory()
    story.given("m1")
    story.reads("m1", 0, 4)
    story.given("m2")
    story.reads("m2", 0, 4)
    story.commits("m2", 4)
    story.commits("m1", 4)
    assert story.found() == {Anomaly.TWO_OWNERS: 1}


def test_a_commit_that_was_on_its_way_when_another_was_taken_proves_nothing() -> None:
    story = GroupStory()
    story.given("m1")
    story.reads("m1", 0, 4)
    late = story.sends("m1", 4)
    story.given("m2")
    story.reads("m2", 0, 4)
    story.commits("m2", 4)
    story.ends(late)
    assert story.found() == {}


def test_a_member_that_was_given_a_partition_and_heard_of_it_late_is_no_owner() -> None:
    story = GroupStory()
    story.given("m1")
    story.reads("m1", 0, 4)
    story.given("m2")  # of the generation before: it was paused
    story.commits("m1", 4)
    story.commits("m2", 4, "fail")
    assert story.found() == {}


def test_a_commit_below_one_that_was_taken_went_back() -> None:
    story = GroupStory()
    story.given("m1")
    story.reads("m1", 0, 6)
    story.commits("m1", 6)
    story.commits("m1", 3)
    assert story.found() == {Anomaly.COMMIT_WENT_BACK: 1}


def test_a_member_that_begins_below_what_was_committed_has_found_a_commit_lost() -> None:
    story = GroupStory()
    story.given("m1")
    story.reads("m1", 0, 6)
    story.commits("m1", 6)
    story.given("m2")
    story.reads("m2", 2, 8)
    assert story.found() == {Anomaly.LOST_COMMIT: 1}


def test_what_is_committed_and_was_handed_to_nobody_is_found() -> None:
    story = GroupStory()
    story.given("m1")
    story.reads("m1", 0, 4)
    story.commits("m1", 7)
    story.given("m2")
    story.reads("m2", 7, 10)
    assert story.found() == {Anomaly.COMMITTED_UNREAD: 3}


def test_a_commit_of_unknown_outcome_may_have_been_taken() -> None:
    story = GroupStory()
    story.given("m1")
    story.reads("m1", 0, 6)
    story.commits("m1", 6, "info")
    story.sends("m1", 6)
    story.given("m2")
    story.reads("m2", 6, 8)
    story.commits("m2", 8)
    assert story.found() == {}


def test_lines_of_members_are_read_as_they_are_written() -> None:
    for operation in (
        Operation("m1", 5, "info", "given", 1, TOPIC, 0, group=GROUP),
        Operation("m1", 5, "invoke", "commit", 2, TOPIC, 0, offset=7, group=GROUP),
    ):
        assert from_line(to_line(operation)) == operation


def test_spans_are_a_set() -> None:
    chance = random.Random(1)
    for _ in range(50):
        spans, plain = Spans(), set()
        for _ in range(60):
            offset = chance.randrange(40)
            spans.add(offset)
            plain.add(offset)
        assert spans.first == min(plain)
        assert spans.missing(3, 38) == [offset for offset in range(3, 38) if offset not in plain]
