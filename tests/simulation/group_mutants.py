"""Deliberate faults in the coordinators of groups, to show that the judge of groups can fail; as `mutants.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fencepost.consuming.group_member import GroupMember
from fencepost_node.coordination import classic_rules, consumer_rules, coordinator, offset_rules
from fencepost_node.coordination.classic_group import ClassicGroup, Member, group_from_record
from fencepost_node.coordination.classic_rules import Step
from fencepost_node.coordination.consumer_records import LoadedConsumerGroup
from fencepost_node.coordination.coordinator import Decision
from fencepost_node.coordination.records import GroupRecord
from fencepost_node.coordination.table import Table
from fencepost_node.coordinators.partition_coordinator import PartitionCoordinator
from tests.simulation.consumer_group import simulate_consumer_group
from tests.simulation.groups import GroupResult, simulate_group
from tests.simulation.mutants import Mutant

KILLS = ("kill broker", "kill leader", "clean restart", "pause broker")
NETWORK = ("cut one way", "cut both ways", "isolate broker", "kill leader", "flaky links")


GROUP_MUTANTS: list[Mutant[GroupResult]] = []


def mutant(
    *promises: str,
    kinds: tuple[str, ...] = KILLS,
    seeds: int = 6,
    first_seed: int = 0,
    run: Callable[[int, tuple[str, ...]], GroupResult] = simulate_group,
) -> Callable[[Callable[..., None]], None]:
    def register(patches: Callable[..., None]) -> None:
        name = patches.__name__.strip("_").replace("_", "-")
        GROUP_MUTANTS.append(Mutant(name, patches, frozenset(promises), kinds, seeds, first_seed, run))

    return register


@mutant("G12", "G13", kinds=("cut both ways", "isolate broker", "kill broker"), first_seed=2)
def _answers_before_the_commit(replace_: Any) -> None:
    def answer(self: PartitionCoordinator, decision: Decision) -> None:
        for token, told in decision.answers:
            self._reply(token, told)

    replace_(PartitionCoordinator, "_answer_when_committed", answer)


@mutant("G13")
def _a_commit_of_an_older_generation_is_taken(replace_: Any) -> None:
    replace_(offset_rules, "require_generation", lambda group, generation: None)


@mutant("G12")
def _two_owners_in_one_generation(replace_: Any) -> None:
    """The leader's assignment is told, and not recorded: the next coordinator takes another one."""
    original = classic_rules._assign

    def assign(step: Step, request: Any) -> None:
        original(step, request)
        step.record = False

    replace_(classic_rules, "_assign", assign)


@mutant("G12", "G13")
def _a_new_coordinator_forgets_the_generation(replace_: Any) -> None:
    def forgetful(group_id: str, record: GroupRecord, now: float) -> ClassicGroup:
        return replace(group_from_record(group_id, record, now), generation=0)

    replace_(coordinator, "group_from_record", forgetful)


@mutant("G12", "G13", first_seed=2)
def _a_generation_is_told_and_not_recorded(replace_: Any) -> None:
    original = classic_rules._complete

    def complete(step: Step) -> None:
        original(step)
        step.record = False

    replace_(classic_rules, "_complete", complete)


@mutant("G12", "G13", "G11", first_seed=2)
def _a_snapshot_has_no_groups(replace_: Any) -> None:
    replace_(Table, "copy", lambda self: Table())


@mutant("G12", "G13", "G11")
def _only_the_first_record_of_batches_is_folded(replace_: Any) -> None:
    """The next coordinator lacks the others; the one that wrote them knows them all."""
    original = Table.stage_batches
    replace_(Table, "stage_batches", lambda self, batches: original(self, batches)[:1])


@mutant("G11")
def _nothing_is_a_sign_of_life(replace_: Any) -> None:
    """A member's session ends a session timeout after it has joined."""
    replace_(Member, "alive", lambda self, now: self)


# ---- KIP-848, with Fencepost's own members ----


@mutant("G12", "G13", run=simulate_consumer_group)
def _a_partition_is_given_before_it_is_given_up(replace_: Any) -> None:
    replace_(consumer_rules, "_free", lambda group, member, wanted: set(wanted))


@mutant("G13", run=simulate_consumer_group)
def _a_commit_of_an_older_member_epoch_is_taken(replace_: Any) -> None:
    replace_(consumer_rules, "check_committer", lambda group, member_id, epoch, partitions: None)


@mutant("G12", first_seed=2, run=simulate_consumer_group)
def _a_member_reads_on_though_its_session_may_be_over(replace_: Any) -> None:
    """It was paused, and reads what it has buffered before it has heard of the coordinator."""
    replace_(GroupMember, "is_sure", lambda self, now: True)


@mutant("G12", "G13", first_seed=8, run=simulate_consumer_group)
def _a_new_coordinator_knows_no_assignments(replace_: Any) -> None:
    original = LoadedConsumerGroup.finish

    def forgetful(self: Any, now: float, session_timeout_s: float) -> Any:
        group = original(self, now, session_timeout_s)
        members = {each.member_id: replace(each, assigned={}, revoking={}) for each in group.members.values()}
        return replace(group, members=members)

    replace_(LoadedConsumerGroup, "finish", forgetful)
