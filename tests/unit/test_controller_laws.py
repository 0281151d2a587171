"""Laws that hold whatever happens, in whatever order: random commands against the invariants, checked from outside.

`decide` checks its invariants itself and would raise InvariantBroken. Here they are stated once more, over the whole image
and over history, with a world that knows which processes are really alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fencepost_controller.decisions.brokers import (
    BeginShutdown,
    FailReplicas,
    FenceBroker,
    RegisterBroker,
    UnfenceBroker,
)
from fencepost_controller.decisions.draft import Command, Group, decide
from fencepost_controller.decisions.elections import (
    ElectPreferredLeader,
    ElectUncleanLeader,
    RestorePreferredLeaders,
)
from fencepost_controller.decisions.invariants import check_image
from fencepost_controller.decisions.isr import AlterPartition, StartReplicaOver
from fencepost_controller.decisions.producers import (
    AllocateProducerIds,
    ExpireNames,
    InitProducer,
    KeepName,
    RemoveName,
)
from fencepost_controller.decisions.reassignment import ReassignPartitions
from fencepost_controller.decisions.topic_config import AlterTopicConfig
from fencepost_controller.decisions.topics import CreateTopic, DeleteTopic
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.features import FIRST, NEWEST
from fencepost_proto.protocol.metadata import (
    FIRST_NAMED_ID,
    NO_LEADER,
    RETIRED_EPOCH,
    MetadataImage,
    PartitionKey,
    Topic,
    TopicConfig,
)
from tests.unit.controller_story import CLUSTER_ID, Story

BROKERS = st.integers(1, 4)
SUBSETS = st.lists(st.integers(1, 4), min_size=1, max_size=4, unique=True)


class Cluster(RuleBasedStateMachine):
    """Brokers 1 to 4, two topics, everything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.story = Story().cluster(1, 2, 3)
        self.story.topic("a", (1, 2, 3), (2, 3, 1), config=TopicConfig(min_insync_replicas=2)).topic("b", (3, 1))
        self.lives = 0
        self.topics = 0
        self.images: list[MetadataImage] = [self.story.image]
        self.ids: list[int] = []
        self.named_ids: list[int] = []
        self.leaders: dict[tuple[PartitionKey, int], int] = {}  # G7: one leader for one leader epoch
        self.written = {broker: [self.story.epoch(broker)] for broker in (1, 2, 3)}  # epochs that folders have carried
        self.served = {broker: self.story.epoch(broker) for broker in (1, 2, 3)}  # the newest that was ever unfenced
        self.whole = {p.id: set(p.replicas) for p in self.image.partitions.values()}  # who holds all that is committed

    def does(self, command: Command[object]) -> object:
        """The answer, or the error that it was refused with; a refusal changes nothing by construction."""
        try:
            decision = decide(self.story.image, command, self.story.failed)
        except FencepostError as error:
            return error
        self.story.image = decision.image
        if decision.image is not self.images[-1]:
            self._who_joined(self.images[-1], decision.image)
            self.images.append(decision.image)
        return decision.answer

    def _who_joined(self, before: MetadataImage, after: MetadataImage) -> None:
        """A replica that comes in sync has all, by its leader's word; one elected uncleanly is the measure for all."""
        for key, partition in after.partitions.items():
            was = before.partitions.get(key)
            if was is None:
                self.whole[key] = set(partition.replicas)
                continue
            self.whole[key] &= set(partition.replicas)
            elected = partition.leader != NO_LEADER == was.leader
            if elected and partition.leader not in (*was.isr, *was.eligible):
                self.whole[key] = {partition.leader}
        for key in [key for key in self.whole if key not in after.partitions]:
            del self.whole[key]

    @property
    def image(self) -> MetadataImage:
        return self.story.image

    @rule(
        broker=BROKERS,
        lost_tail=st.booleans(),
        new_folder=st.booleans(),
        found_dead=st.booleans(),
        older=st.integers(0, 3),
        killed_at_once=st.booleans(),
        feature_level=st.sampled_from((NEWEST, NEWEST, NEWEST, FIRST)),
    )
    def starts(
        self,
        *,
        broker: int,
        lost_tail: bool,
        new_folder: bool,
        found_dead: bool,
        older: int,
        killed_at_once: bool,
        feature_level: int,
    ) -> None:
        """With one of the folders that it ever had; killed at once: before it can write the new epoch into it."""
        self.lives += 1
        before, written = self.image, self.written.get(broker, [0])
        folder_epoch = written[-1 - min(older, len(written) - 1)]
        answer = self.does(
            RegisterBroker(
                broker,
                f"another {self.lives}",
                "" if new_folder else CLUSTER_ID,
                f"host-{broker}:{self.lives}",
                self.story.epoch(broker) if found_dead else 0,
                lost_tail,
                folder_epoch=folder_epoch,
                feature_level=feature_level,
            )
        )
        if isinstance(answer, FencepostError):
            return
        lacks_records = folder_epoch < self.served.get(broker, 0)
        if lacks_records or lost_tail or new_folder:
            for whole in self.whole.values():
                whole.discard(broker)
        for key, partition in self.image.partitions.items():
            if lacks_records:
                assert broker not in partition.isr, "an older folder counts as in sync"
            elif not lost_tail and not new_folder and before.partitions[key].isr == (broker,):
                assert partition.isr == (broker,), "a folder that lacks nothing does not count as in sync"
        self.written[broker] = [*written, folder_epoch if killed_at_once else self.story.epoch(broker)]

    @rule(broker=BROKERS)
    def registers_again(self, broker: int) -> None:
        known = self.image.brokers.get(broker)
        if known is not None:
            before = self.image
            same = RegisterBroker(broker, known.incarnation, CLUSTER_ID, known.address, may_have_lost_tail=True)
            self.does(replace(same, feature_level=known.feature_level))
            assert self.image is before

    @rule(broker=BROKERS)
    def dies(self, broker: int) -> None:
        self.does(FenceBroker(broker, self.story.epoch(broker)))

    @rule(broker=BROKERS)
    def is_ready(self, broker: int) -> None:
        """Which it says only after it has written its epoch."""
        epoch = self.story.epoch(broker)
        if epoch and self.written[broker][-1] == epoch and self.does(UnfenceBroker(broker, epoch)) is True:
            self.served[broker] = epoch

    @rule(broker=BROKERS)
    def shuts_down(self, broker: int) -> None:
        self.does(BeginShutdown(broker, self.story.epoch(broker)))

    @rule(broker=BROKERS, data=st.data(), acted_on=st.booleans())
    def disk_fails(self, broker: int, data: st.DataObject, acted_on: bool) -> None:
        """A heartbeat tells of it; the command that acts on it comes now, or only after others that wait already."""
        who = (broker, self.story.epoch(broker))
        if self.image.partitions:
            key = data.draw(st.sampled_from(sorted(self.image.partitions)))
            self.story.failed[who] = self.story.failed.get(who, frozenset()) | {key}
        if acted_on:
            self.does(FailReplicas(*who))

    @precondition(lambda self: self.image.partitions)
    @rule(data=st.data(), isr=SUBSETS, stale=st.integers(0, 2))
    def proposes(self, data: st.DataObject, isr: list[int], stale: int) -> None:
        partition = self.image.partitions[data.draw(st.sampled_from(sorted(self.image.partitions)))]
        proposer = data.draw(st.sampled_from([partition.leader, *partition.replicas]))
        command = AlterPartition(
            proposer,
            self.story.epoch(proposer),
            partition.id,
            partition.leader_epoch,
            partition.partition_epoch - stale,
            tuple((member, self.story.epoch(member)) for member in isr),
        )
        answer = self.does(command)
        if stale == 0 and answer is None:
            assert proposer == partition.leader
            self.whole[partition.id].update(isr)  # a leader proposes no one that lacks anything

    @precondition(lambda self: self.image.partitions)
    @rule(data=st.data())
    def commits(self, data: st.DataObject) -> None:
        """A leader commits where enough are in sync, one of an older version always, and no one else gets the record."""
        partition = self.image.partitions[data.draw(st.sampled_from(sorted(self.image.partitions)))]
        needed = self.image.topics[partition.topic_id].config.min_insync_replicas
        if partition.leader == NO_LEADER:
            return
        if len(partition.isr) >= needed or self.image.brokers[partition.leader].feature_level == FIRST:
            self.whole[partition.id] &= set(partition.isr)

    @rule(topic=st.sampled_from("ab"), minimum=st.integers(1, 3))
    def sets_minimum(self, topic: str, minimum: int) -> None:
        self.does(AlterTopicConfig(topic, (("min_insync_replicas", str(minimum)),)))

    @precondition(lambda self: self.image.partitions)
    @rule(broker=BROKERS, data=st.data())
    def starts_over(self, broker: int, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.image.partitions)))
        if not isinstance(self.does(StartReplicaOver(broker, self.story.epoch(broker), key)), FencepostError):
            self.whole[key].discard(broker)

    @invariant()
    def whoever_may_be_elected_holds_all_that_is_committed(self) -> None:
        for key, partition in self.image.partitions.items():
            lacking = {*partition.isr, *partition.eligible} - self.whole[key]
            assert not lacking, f"{partition} may elect {lacking}, which lack what is committed"

    @rule(topic=st.sampled_from("ab"), index=st.integers(0, 1), replicas=st.one_of(st.just([]), SUBSETS))
    def reassigns(self, topic: str, index: int, replicas: list[int]) -> None:
        self.does(ReassignPartitions(topic, ((index, tuple(replicas)),)))

    @rule(topic=st.sampled_from("ab"), index=st.integers(0, 1), unclean=st.booleans(), leader=st.integers(-1, 4))
    def elects(self, topic: str, index: int, unclean: bool, leader: int) -> None:
        self.does(ElectUncleanLeader(topic, index, leader) if unclean else ElectPreferredLeader(topic, index))

    @rule(settled=SUBSETS)
    def restores_preferred_leaders(self, settled: list[int]) -> None:
        self.does(RestorePreferredLeaders(frozenset(settled)))

    @rule(name=st.sampled_from("ab"), partitions=st.integers(1, 3), factor=st.integers(1, 3))
    def creates(self, name: str, partitions: int, factor: int) -> None:
        self.topics += 1
        self.does(CreateTopic(name, f"{name}-id-{self.topics}", partitions, factor))

    @rule(name=st.sampled_from("ab"))
    def deletes(self, name: str) -> None:
        self.does(DeleteTopic(name))

    @rule(broker=BROKERS)
    def takes_ids(self, broker: int) -> None:
        answer = self.does(AllocateProducerIds(broker, self.story.epoch(broker)))
        if isinstance(answer, range):
            self.ids.extend((answer.start, answer.stop - 1))

    @rule(name=st.sampled_from("pq"), holds=st.booleans())
    def names(self, name: str, holds: bool) -> None:
        known = self.image.producers.get(name)
        if known is None or not holds:
            self.does(InitProducer(name))
        else:
            self.does(InitProducer(name, known.producer_id, known.epoch))
        if known is None:
            self.named_ids.append(self.image.producers[name].producer_id)

    @rule(name=st.sampled_from("pq"), current=st.booleans())
    def keeps_a_name(self, name: str, current: bool) -> None:
        known = self.image.producers.get(name)
        if known is not None:
            self.does(KeepName(name, known.producer_id, known.epoch - (not current)))

    @rule(name=st.sampled_from("pq"))
    def removes_a_name(self, name: str) -> None:
        self.does(RemoveName(name))

    @rule(elapsed_ms=st.integers(1, 400), max_names=st.integers(1, 2))
    def runs(self, elapsed_ms: int, max_names: int) -> None:
        self.does(ExpireNames(elapsed_ms, 1_000, max_names))

    @invariant()
    def the_image_holds_together(self) -> None:
        check_image(self.image)
        for partition in self.image.partitions.values():
            if partition.leader != NO_LEADER:
                assert partition.leader in partition.isr
                assert not self.image.brokers[partition.leader].fenced
                holder = self.leaders.setdefault((partition.id, partition.leader_epoch), partition.leader)
                assert holder == partition.leader
            else:
                live = [b for b in (*partition.isr, *partition.eligible) if self.can_lead(b, partition.id)]
                assert not live, f"{partition} is offline beside live members {live}, in sync or eligible"
            assert set(partition.isr) <= set(partition.replicas)

    def can_lead(self, broker_id: int, key: PartitionKey) -> bool:
        broker = self.image.brokers[broker_id]
        failed = self.story.failed.get((broker_id, broker.broker_epoch), frozenset())
        return not broker.fenced and not broker.shutting_down and key not in failed

    @invariant()
    def what_only_rises_has_risen(self) -> None:
        for before, after in pairwise(self.images):
            assert after.version == before.version + 1
            assert after.next_ids.next_id >= before.next_ids.next_id
            assert after.next_ids.next_named_id >= before.next_ids.next_named_id
            for broker_id, broker in before.brokers.items():
                assert after.brokers[broker_id].broker_epoch >= broker.broker_epoch
            for key, partition in before.partitions.items():
                if key in after.partitions:
                    now = after.partitions[key]
                    assert now.leader_epoch >= partition.leader_epoch
                    assert (now == partition) == (now.partition_epoch == partition.partition_epoch)
            for name, producer in before.producers.items():
                now_named = after.producers.get(name, producer)
                assert (now_named.producer_id, now_named.epoch) >= (producer.producer_id, producer.epoch)
            for producer_id in range(FIRST_NAMED_ID, before.next_ids.next_named_id):
                assert self.fence(after, producer_id) >= self.fence(before, producer_id)
        del self.images[:-1]

    @staticmethod
    def fence(image: MetadataImage, producer_id: int) -> int:
        """The lowest epoch that a broker takes: none of an id that was given out and that no name has."""
        return image.fences.get(producer_id, RETIRED_EPOCH)

    @invariant()
    def ids_are_never_given_twice(self) -> None:
        assert self.ids == sorted(set(self.ids))
        assert self.named_ids == sorted(set(self.named_ids))


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# ---- A group of commands ----

ONE = st.integers(1, 3)


def commands_of(story: Story) -> st.SearchStrategy[Command[object]]:
    """Commands that may meet in one group. No registrations: their broker epoch is the version, and versions differ."""
    keys = sorted(story.image.partitions)
    proposals = st.builds(
        lambda broker, key, members: story.proposal(broker, key, *dict.fromkeys((broker, *members))),
        ONE, st.sampled_from(keys), st.lists(ONE, max_size=3),
    )  # fmt: skip
    epochs = {broker: story.epoch(broker) for broker in (1, 2, 3)}
    return st.one_of(
        proposals,
        ONE.map(lambda broker: FenceBroker(broker, epochs[broker])),
        ONE.map(lambda broker: UnfenceBroker(broker, epochs[broker])),
        ONE.map(lambda broker: BeginShutdown(broker, epochs[broker])),
        st.sampled_from(("p", "q")).map(InitProducer),
        ONE.map(lambda broker: AllocateProducerIds(broker, epochs[broker])),
        st.sampled_from("abc").map(lambda name: CreateTopic(name, f"new-{name}", 2, 2)),
        st.sampled_from("abc").map(DeleteTopic),
        st.just(RestorePreferredLeaders(frozenset((1, 2, 3)))),
    )


def unversioned(value: object) -> Any:
    """Topics without the version that created them, which is another one where commands are versions of their own."""
    if isinstance(value, Mapping):
        return {key: unversioned(one) for key, one in value.items()}
    return replace(value, created_version=0) if isinstance(value, Topic) else value


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_group_comes_to_what_its_commands_come_to_one_after_the_other(data: st.DataObject) -> None:
    story = Story().cluster(1, 2, 3).topic("a", (1, 2, 3), (2, 3, 1)).topic("b", (3, 1))
    before = story.image
    group = Group(before, {})
    for command in data.draw(st.lists(commands_of(story), max_size=12)):
        answers: list[object] = []
        for decided in (group.decide, story.does):
            try:
                answers.append(decided(command))
            except FencepostError as error:
                answers.append((type(error), str(error)))
        assert unversioned(answers[0]) == unversioned(answers[1])
    after = group.image()
    assert all(0 < topic.created_version <= after.version for topic in after.topics.values())
    assert replace(after, version=0, topics=unversioned(after.topics)) == replace(
        story.image, version=0, topics=unversioned(story.image.topics)
    )
    assert after.version == before.version + bool(group.changes)
    check_image(after)
    assert before.with_changes(after.version, group.changes) == after, "its changes are the delta"
