"""The coordinator's core: all groups and offsets of one partition of the internal topic, and what is asked of them. Pure.

`(state, question, moment) → (records, answers, next state)`: `decide` and `tick` change nothing and return a `Decision`;
`apply` changes the state. Between the two the records are appended. If that is refused, the decision is dropped, and
`refuse` gives another one, which tells whoever waits. Nothing else changes the state, so it is always what the records
say, and what this process alone knows (who waits, until when).

State = the fold of the partition's records. `load` makes a new leader's state of the newest value of each key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

from fencepost_node.coordination import classic_rules, consumer_rules, limits, offset_rules
from fencepost_node.coordination.classic_group import (
    ClassicGroup,
    State,
    Token,
    group_from_record,
    without_sessions,
)
from fencepost_node.coordination.classic_rules import Step
from fencepost_node.coordination.consumer_group import JOINING, ConsumerGroup
from fencepost_node.coordination.consumer_records import LoadedConsumerGroup, records_between
from fencepost_node.coordination.messages import (
    Commit,
    Committed,
    ConsumerAlive,
    ConsumerDescription,
    ConsumerHeartbeat,
    Deleted,
    DeleteGroup,
    DeleteOffsets,
    Describe,
    DescribeConsumer,
    DescribedConsumer,
    DescribedMember,
    Description,
    FetchedOffsets,
    FetchOffsets,
    Heartbeat,
    Join,
    Leave,
    ListedGroup,
    Sync,
)
from fencepost_node.coordination.moment import Moment
from fencepost_node.coordination.offset_rules import TopicPartition
from fencepost_node.coordination.records import (
    ConsumerGroupKey,
    GroupKey,
    GroupRecord,
    Key,
    OffsetKey,
    OffsetRecord,
    Record,
    Value,
)
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError

OfClassicGroup = Join | Sync | Heartbeat | Leave
OfConsumerGroup = ConsumerHeartbeat | DescribeConsumer
Question = OfClassicGroup | OfConsumerGroup | Commit | FetchOffsets | DeleteOffsets | Describe | DeleteGroup
Answer = classic_rules.Answer | ConsumerAlive | ConsumerDescription | Committed | FetchedOffsets | Description | Deleted
Group = ClassicGroup | ConsumerGroup


_OWN_KEY: Mapping[type[Group], type[Key]] = {ClassicGroup: GroupKey, ConsumerGroup: ConsumerGroupKey}
GroupT = TypeVar("GroupT", bound=Group)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be appended, what the group is then, and who is answered once the records are committed."""

    group_id: str
    group: Group | None  # None: there is none
    records: tuple[Record, ...] = ()
    answers: tuple[tuple[Token, Answer], ...] = ()


@dataclass(slots=True, eq=False)
class Coordinator:
    """A group with offsets, or with a record, is in `groups`. `apply` alone changes either mapping."""

    groups: dict[str, Group] = field(default_factory=dict)
    offsets: dict[str, dict[TopicPartition, OffsetRecord]] = field(default_factory=dict)  # by group

    # ---- Decisions ----

    def decide(self, question: Question, token: Token, moment: Moment) -> Decision:
        """Raises FencepostError, which is the answer then."""
        _check_ids(question)
        match question:
            case Join():
                return self._join(question, token, moment)
            case Sync():
                group = self._group_with_members(question.group_id)
                return self._of_step(classic_rules.sync(group, question, token, moment))
            case Heartbeat():
                group = self._group_with_members(question.group_id)
                return self._of_step(classic_rules.heartbeat(group, question, token, moment))
            case Leave():
                group = self._group_with_members(question.group_id)
                return self._of_step(classic_rules.leave(group, question, token, moment))
            case ConsumerHeartbeat():
                return self._consumer_heartbeat(question, token, moment)
            case Commit():
                return self._commit(question, token, moment)
            case FetchOffsets():
                return self._fetch(question, token)
            case DeleteOffsets():
                return self._delete_offsets(question, token)
            case Describe():
                classic = self._existing(question.group_id, ClassicGroup)
                return Decision(question.group_id, classic, (), ((token, describe(classic)),))
            case DescribeConsumer():
                consumer = self._existing(question.group_id, ConsumerGroup)
                return Decision(question.group_id, consumer, (), ((token, describe_consumer(consumer)),))
            case DeleteGroup():
                return self._delete_group(question, token)

    def tick(self, group_id: str, moment: Moment) -> Decision:
        """What time does to a group; see its `next_deadline`."""
        group = self.groups[group_id]
        if isinstance(group, ClassicGroup):
            return self._of_step(classic_rules.tick(group, moment))
        after = consumer_rules.without(group, consumer_rules.expired(group, moment.now))
        return self._changed(group, after, moment)

    def refuse(self, decision: Decision, error: FencepostError, moment: Moment) -> Decision:
        """Instead of `decision`, whose records could not be appended: whoever it would have answered, or who waits, is
        told `error`."""
        group = self.groups.get(decision.group_id)
        told: dict[Token, Answer] = {token: error for token, _ in decision.answers}
        if all(isinstance(key, OffsetKey) for key, _ in decision.records):  # it changes nothing else
            return Decision(decision.group_id, group, (), tuple(told.items()))
        if isinstance(group, ClassicGroup):
            group, waiting = classic_rules.without_waiters(group, error, moment.now)
            told.update(waiting)
        if isinstance(decision.group, ClassicGroup):  # whoever would have waited from now on
            told.update(classic_rules.without_waiters(decision.group, error, moment.now)[1])
        return Decision(decision.group_id, group, (), tuple(told.items()))

    def sweep(
        self, group_id: str, moment: Moment, retention_ms: int, is_gone: Callable[[str, bytes], bool]
    ) -> Decision | None:
        """Forget offsets, and the group where nothing is left of it. None: there is nothing to forget.

        MAX_OFFSETS_FORGOTTEN_AT_ONCE offsets at most: it is asked again for the others.
        """
        group, held = self.groups[group_id], self.offsets.get(group_id, {})
        gone = offset_rules.forgotten(
            held,
            left_ms=None if _has_members(group) else group.state_since_ms,
            wall_ms=moment.wall_ms,
            retention_ms=retention_ms,
            is_gone=is_gone,
        )[: limits.MAX_OFFSETS_FORGOTTEN_AT_ONCE]
        records: list[Record] = [(OffsetKey(group_id, *place), None) for place in gone]
        nothing_left = len(gone) == len(held) and not _has_members(group)
        if nothing_left:
            records += _tombstones(group)
        if not records and not nothing_left:
            return None
        return Decision(group_id, None if nothing_left else group, tuple(records))

    # ---- The state ----

    def apply(self, decision: Decision) -> None:
        """The records are in the log."""
        group_id, group = decision.group_id, decision.group
        for key, value in decision.records:
            if isinstance(key, OffsetKey):
                self._put_offset(key, value)
            elif group is not None and isinstance(key, _OWN_KEY[type(group)]):
                group = _recorded(group, value)
        if group is not None and self._is_needed(group):
            self.groups[group_id] = group
        else:
            self.groups.pop(group_id, None)

    def _put_offset(self, key: OffsetKey, value: Value | None) -> None:
        if isinstance(value, OffsetRecord):
            self.offsets.setdefault(key.group_id, {})[key.topic, key.partition] = value
        elif (held := self.offsets.get(key.group_id)) is not None:
            held.pop((key.topic, key.partition), None)
            if not held:
                del self.offsets[key.group_id]

    def _is_needed(self, group: Group) -> bool:
        return _has_members(group) or group.is_recorded or group.group_id in self.offsets

    # ---- Groups ----

    def _of_step(self, step: Step) -> Decision:
        group = step.group
        record: GroupRecord | None = None
        if step.record:
            record = group.as_record()
        elif step.gone and group.recorded is not None and group.size_bytes <= limits.RECORDED_DEPARTURE_BYTES:
            marked = without_sessions(group.recorded, step.gone)
            record = marked if marked != group.recorded else None  # the leader before had marked them
        records: tuple[Record, ...] = ((GroupKey(group.group_id), record),) if record is not None else ()
        return Decision(group.group_id, group, records, tuple(step.answers))

    def _join(self, question: Join, token: Token, moment: Moment) -> Decision:
        before = self.groups.get(question.group_id)
        if before is None:
            if question.member_id:
                raise errors.UnknownMemberId(f"there is no group {question.group_id!r} to have {question.member_id!r}")
            self._check_room(question.group_id)
            return self._of_step(classic_rules.join(ClassicGroup(question.group_id), question, token, moment))
        if isinstance(before, ClassicGroup):
            return self._of_step(classic_rules.join(before, question, token, moment))
        if before.members:
            raise errors.InconsistentGroupProtocol(
                f"group {question.group_id!r} has members of the consumer protocol (KIP-848): classic members cannot join"
            )
        # It becomes a classic group, and its numbers go on.
        classic = ClassicGroup(question.group_id, generation=before.epoch, state_since_ms=moment.wall_ms)
        step = classic_rules.join(classic, question, token, moment)
        step.record = True
        decision = self._of_step(step)
        return replace(decision, records=(*_tombstones(before), *decision.records))

    def _consumer_heartbeat(self, question: ConsumerHeartbeat, token: Token, moment: Moment) -> Decision:
        before = self.groups.get(question.group_id)
        group = before if isinstance(before, ConsumerGroup) else ConsumerGroup(question.group_id)
        converted: list[Record] = []
        if before is None or isinstance(before, ClassicGroup):
            if question.member_epoch != JOINING:
                raise errors.UnknownMemberId(f"there is no consumer group {question.group_id!r}")
            if before is None:
                self._check_room(question.group_id)
            elif _has_members(before):
                raise errors.GroupIdNotFound(
                    f"group {question.group_id!r} has members of the classic protocol: it is no consumer group"
                )
            else:  # it becomes one, and its numbers go on
                converted, group = _tombstones(before), replace(group, epoch=before.generation)
        after, answer = consumer_rules.heartbeat(group, question, moment)
        decision = self._changed(group, after, moment)
        return replace(decision, records=(*converted, *decision.records), answers=((token, answer),))

    def _changed(self, before: ConsumerGroup, after: ConsumerGroup, moment: Moment) -> Decision:
        if before.members and not after.members:
            after = replace(after, state_since_ms=moment.wall_ms)
        return Decision(after.group_id, after, tuple(records_between(before, after)))

    def _check_room(self, group_id: str) -> None:
        if len(self.groups) >= limits.MAX_GROUPS:
            raise errors.GroupMaxSizeReached(
                f"group {group_id!r} would be one more than {limits.MAX_GROUPS} groups of one coordinator"
            )

    def _group_with_members(self, group_id: str) -> ClassicGroup:
        group = self.groups.get(group_id)
        if not isinstance(group, ClassicGroup):
            raise errors.UnknownMemberId(f"there is no classic group {group_id!r}")
        return group

    def _existing(self, group_id: str, of_type: type[GroupT]) -> GroupT:
        group = self.groups.get(group_id)
        if not isinstance(group, of_type):
            raise errors.GroupIdNotFound(f"there is no group {group_id!r} of that type")
        return group

    def list_groups(self) -> list[ListedGroup]:
        return [
            ListedGroup(group.group_id, group.protocol_type or "", group.state.value, "classic")
            if isinstance(group, ClassicGroup)
            else ListedGroup(group.group_id, offset_rules.CONSUMER_PROTOCOL, group.state, "consumer")
            for group in self.groups.values()
        ]

    def _delete_group(self, question: DeleteGroup, token: Token) -> Decision:
        group = self.groups.get(question.group_id)
        if group is None:
            raise errors.GroupIdNotFound(f"there is no group {question.group_id!r}")
        if _has_members(group):
            raise errors.NonEmptyGroup(f"group {question.group_id!r} has members")
        held = self.offsets.get(question.group_id, {})
        forgotten = list(islice(held, limits.MAX_OFFSETS_FORGOTTEN_AT_ONCE))
        records: list[Record] = [(OffsetKey(question.group_id, *place), None) for place in forgotten]
        if len(forgotten) < len(held):
            return Decision(question.group_id, group, tuple(records), ((token, Deleted(is_complete=False)),))
        records += _tombstones(group)
        return Decision(question.group_id, None, tuple(records), ((token, Deleted()),))

    # ---- Offsets ----

    def _commit(self, question: Commit, token: Token, moment: Moment) -> Decision:
        known = self.groups.get(question.group_id)
        group = known or ClassicGroup(question.group_id, state_since_ms=moment.wall_ms)
        offset_rules.check_committer(group, question)
        if known is None:
            self._check_room(question.group_id)
        held = self.offsets.get(question.group_id, {})
        records, found = offset_rules.commit(question.group_id, question, held, moment.wall_ms)
        if isinstance(group, ClassicGroup) and (member := group.members.get(question.member_id)) is not None:
            # A commit is a sign of life.
            group = replace(group, members={**group.members, member.member_id: member.alive(moment.now)})
        return Decision(question.group_id, group, tuple(records), ((token, Committed(tuple(found))),))

    def _fetch(self, question: FetchOffsets, token: Token) -> Decision:
        group = self.groups.get(question.group_id)
        if isinstance(group, ConsumerGroup) and question.member_id:
            consumer_rules.check_reader(group, question.member_id, question.member_epoch)
        answer = FetchedOffsets(offset_rules.fetch(question, self.offsets.get(question.group_id, {})))
        return Decision(question.group_id, group, (), ((token, answer),))

    def _delete_offsets(self, question: DeleteOffsets, token: Token) -> Decision:
        group = self.groups.get(question.group_id)
        if group is None:
            raise errors.GroupIdNotFound(f"there is no group {question.group_id!r}")
        held = self.offsets.get(question.group_id, {})
        records: list[Record] = []
        found: list[FencepostError | None] = []
        for topic, partition in question.partitions:
            try:
                offset_rules.check_deletable(group, topic)
            except FencepostError as error:
                found.append(error)
                continue
            found.append(None)
            if (topic, partition) in held:
                records.append((OffsetKey(question.group_id, topic, partition), None))
        return Decision(question.group_id, group, tuple(records), ((token, Committed(tuple(found))),))


def _has_members(group: Group) -> bool:
    """Members, or someone who was given an id to become one."""
    return bool(group.members or (isinstance(group, ClassicGroup) and group.pending))


def _recorded(group: Group, value: Value | None) -> Group:
    """With what the log has of it now."""
    if isinstance(group, ClassicGroup):
        return replace(group, recorded=value if isinstance(value, GroupRecord) else None)
    return replace(group, is_recorded=value is not None)


def _tombstones(group: Group) -> list[Record]:
    """For all that the log has of the group itself."""
    if isinstance(group, ConsumerGroup):
        return records_between(group, None)
    return [(GroupKey(group.group_id), None)] if group.is_recorded else []


class Loading:
    """The state of a new leader, of records that come in any order: the newest value of each key."""

    def __init__(self) -> None:
        self._loaded = Coordinator()
        self._classic: dict[str, GroupRecord] = {}
        self._consumer: dict[str, LoadedConsumerGroup] = {}

    def add(self, key: Key, value: Value) -> None:
        if isinstance(key, OffsetKey) and isinstance(value, OffsetRecord):
            self._loaded.offsets.setdefault(key.group_id, {})[key.topic, key.partition] = value
            self._loaded.groups.setdefault(key.group_id, ClassicGroup(key.group_id))
        elif isinstance(value, GroupRecord):
            self._classic[key.group_id] = value
        else:
            group_id = key.group_id
            self._consumer.setdefault(group_id, LoadedConsumerGroup(group_id)).add(key, value)

    def finish(self, moment: Moment) -> Coordinator:
        """Timers start at the moment."""
        for group_id, record in self._classic.items():
            self._loaded.groups[group_id] = group_from_record(group_id, record, moment.now)
        for group_id, loaded in self._consumer.items():
            if loaded.epoch is not None:
                self._loaded.groups[group_id] = loaded.finish(moment.now, moment.consumer.session_timeout_s)
        return self._loaded


def load(records: Iterable[tuple[Key, Value]], moment: Moment) -> Coordinator:
    """The state of which these are the newest values of each key."""
    loading = Loading()
    for key, value in records:
        loading.add(key, value)
    return loading.finish(moment)


def describe(group: ClassicGroup) -> Description:
    return Description(
        group_id=group.group_id,
        state=group.state.value,
        protocol_type=group.protocol_type or "",
        protocol=(group.protocol or "") if group.state is State.STABLE else "",
        members=tuple(
            DescribedMember(
                member.member_id,
                member.instance_id,
                member.client_id,
                member.client_host,
                member.subscription(group.protocol) if group.state is State.STABLE else b"",
                member.assignment if group.state is State.STABLE else b"",
            )
            for member in group.members.values()
        ),
    )


def describe_consumer(group: ConsumerGroup) -> ConsumerDescription:
    return ConsumerDescription(
        group_id=group.group_id,
        state=group.state,
        epoch=group.epoch,
        assignment_epoch=group.assignment_epoch,
        assignor=consumer_rules.assignor_of(group),
        members=tuple(
            DescribedConsumer(
                member.member_id,
                member.instance_id,
                member.rack_id,
                member.epoch,
                member.client_id,
                member.client_host,
                member.topics,
                tuple(sorted(member.assigned)),
                tuple(sorted(group.target_of(member.member_id))),
            )
            for member in group.members.values()
        ),
    )


def _counts(question: Question) -> list[tuple[str, int, int]]:
    """What of a question may be many, how many they are, and how many they may be."""
    match question:
        case Leave():
            return [("members", len(question.members), limits.MAX_MEMBERS)]
        case Sync():
            return [("assignments", len(question.assignments), limits.MAX_MEMBERS)]
        case FetchOffsets() | DeleteOffsets():
            return [("partitions", len(question.partitions or ()), limits.MAX_PARTITIONS_OF_A_QUESTION)]
        case ConsumerHeartbeat():
            return [("owned partitions", len(question.owned or ()), limits.MAX_PARTITIONS_OF_A_QUESTION)]
        case _:
            return []


def _check_ids(question: Question) -> None:
    """Raises InvalidGroupId, InvalidRequest."""
    needs_name = isinstance(question, OfClassicGroup | OfConsumerGroup)
    if len(question.group_id) > limits.MAX_ID_CHARACTERS or (needs_name and not question.group_id):
        raise errors.InvalidGroupId(
            f"a group id of {len(question.group_id)} characters: 1 to {limits.MAX_ID_CHARACTERS} are possible"
        )
    for what, count, most in _counts(question):
        if count > most:
            raise errors.InvalidRequest(f"{count} {what} in one question: at most {most} are taken")
    ids: Mapping[str, str | None] = {}
    if isinstance(question, Join):
        ids = {
            "member id": question.member_id,
            "instance id": question.instance_id,
            "client id": question.client_id,
            "client's host": question.client_host,
        }
    for what, text in ids.items():
        if text is not None and len(text) > limits.MAX_ID_CHARACTERS:
            raise errors.InvalidRequest(
                f"a {what} of {len(text)} characters: at most {limits.MAX_ID_CHARACTERS} are possible"
            )
