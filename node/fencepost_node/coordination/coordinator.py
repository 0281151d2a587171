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

from fencepost_node.coordination import classic_rules, limits, offset_rules
from fencepost_node.coordination.classic_group import ClassicGroup, State, Token, group_from_record
from fencepost_node.coordination.classic_rules import Moment, Step
from fencepost_node.coordination.messages import (
    Commit,
    Committed,
    Deleted,
    DeleteGroup,
    DeleteOffsets,
    Describe,
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
from fencepost_node.coordination.offset_rules import TopicPartition
from fencepost_node.coordination.records import GroupKey, GroupRecord, Key, OffsetKey, OffsetRecord, Record, Value
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError

Question = Join | Sync | Heartbeat | Leave | Commit | FetchOffsets | DeleteOffsets | Describe | DeleteGroup
Answer = classic_rules.Answer | Committed | FetchedOffsets | Description | Deleted


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be appended, what the group is then, and who is answered once the records are committed."""

    group_id: str
    group: ClassicGroup | None  # None: there is none
    records: tuple[Record, ...] = ()
    answers: tuple[tuple[Token, Answer], ...] = ()


@dataclass(slots=True, eq=False)
class Coordinator:
    """A group with offsets, or with a record, is in `groups`. `apply` alone changes either mapping."""

    groups: dict[str, ClassicGroup] = field(default_factory=dict)
    offsets: dict[str, dict[TopicPartition, OffsetRecord]] = field(default_factory=dict)  # by group

    # ---- Decisions ----

    def decide(self, question: Question, token: Token, moment: Moment) -> Decision:
        """Raises FencepostError, which is the answer then."""
        _check_ids(question)
        match question:
            case Join():
                return self._of_step(classic_rules.join(self._group_to_join(question), question, token, moment))
            case Sync():
                group = self._group_with_members(question.group_id)
                return self._of_step(classic_rules.sync(group, question, token, moment))
            case Heartbeat():
                group = self._group_with_members(question.group_id)
                return self._of_step(classic_rules.heartbeat(group, question, token, moment))
            case Leave():
                group = self._group_with_members(question.group_id)
                return self._of_step(classic_rules.leave(group, question, token, moment))
            case Commit():
                return self._commit(question, token, moment)
            case FetchOffsets():
                held = self.offsets.get(question.group_id, {})
                answer = FetchedOffsets(offset_rules.fetch(question, held))
                return Decision(question.group_id, self.groups.get(question.group_id), (), ((token, answer),))
            case DeleteOffsets():
                return self._delete_offsets(question, token)
            case Describe():
                group = self._existing(question.group_id)
                return Decision(question.group_id, group, (), ((token, describe(group)),))
            case DeleteGroup():
                return self._delete_group(question, token)

    def tick(self, group_id: str, moment: Moment) -> Decision:
        """What time does to a group; see `ClassicGroup.next_deadline`."""
        return self._of_step(classic_rules.tick(self.groups[group_id], moment))

    def refuse(self, decision: Decision, error: FencepostError, moment: Moment) -> Decision:
        """Instead of `decision`, whose records could not be appended: whoever it would have answered, or who waits, is
        told `error`."""
        group = self.groups.get(decision.group_id)
        told: dict[Token, Answer] = {token: error for token, _ in decision.answers}
        if not any(isinstance(key, GroupKey) for key, _ in decision.records):  # only offsets: it changes nothing else
            return Decision(decision.group_id, group, (), tuple(told.items()))
        if group is not None:
            group, waiting = classic_rules.without_waiters(group, error, moment.now)
            told.update(waiting)
        if decision.group is not None:  # whoever would have waited from now on
            told.update(classic_rules.without_waiters(decision.group, error, moment.now)[1])
        return Decision(decision.group_id, group, (), tuple(told.items()))

    def sweep(
        self, group_id: str, moment: Moment, retention_ms: int, is_gone: Callable[[str, bytes], bool]
    ) -> Decision | None:
        """Forget offsets, and the group where nothing is left of it. None: there is nothing to forget."""
        group, held = self.groups[group_id], self.offsets.get(group_id, {})
        gone = offset_rules.forgotten(
            held,
            left_ms=group.state_since_ms if group.state is State.EMPTY else None,
            wall_ms=moment.wall_ms,
            retention_ms=retention_ms,
            is_gone=is_gone,
        )
        records: list[Record] = [(OffsetKey(group_id, *place), None) for place in gone]
        nothing_left = len(gone) == len(held) and group.state is State.EMPTY and not group.pending
        if nothing_left and group.is_recorded:
            records.append((GroupKey(group_id), None))
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
            elif group is not None:
                group = replace(group, is_recorded=value is not None)
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

    def _is_needed(self, group: ClassicGroup) -> bool:
        return bool(
            group.state is not State.EMPTY or group.pending or group.is_recorded or group.group_id in self.offsets
        )

    # ---- Groups ----

    def _of_step(self, step: Step) -> Decision:
        group = step.group
        records: tuple[Record, ...] = ((GroupKey(group.group_id), group.as_record()),) if step.record else ()
        return Decision(group.group_id, group, records, tuple(step.answers))

    def _group_to_join(self, question: Join) -> ClassicGroup:
        group = self.groups.get(question.group_id)
        if group is None:
            if question.member_id:
                raise errors.UnknownMemberId(f"there is no group {question.group_id!r} to have {question.member_id!r}")
            self._check_room(question.group_id)
            return ClassicGroup(question.group_id)
        return group

    def _check_room(self, group_id: str) -> None:
        if len(self.groups) >= limits.MAX_GROUPS:
            raise errors.GroupMaxSizeReached(
                f"group {group_id!r} would be one more than {limits.MAX_GROUPS} groups of one coordinator"
            )

    def _group_with_members(self, group_id: str) -> ClassicGroup:
        group = self.groups.get(group_id)
        if group is None:
            raise errors.UnknownMemberId(f"there is no group {group_id!r}")
        return group

    def _existing(self, group_id: str) -> ClassicGroup:
        group = self.groups.get(group_id)
        if group is None:
            raise errors.GroupIdNotFound(f"there is no group {group_id!r}")
        return group

    def list_groups(self) -> list[ListedGroup]:
        return [
            ListedGroup(group.group_id, group.protocol_type or "", group.state.value, "classic")
            for group in self.groups.values()
        ]

    def _delete_group(self, question: DeleteGroup, token: Token) -> Decision:
        group = self._existing(question.group_id)
        if group.state is not State.EMPTY or group.pending:
            raise errors.NonEmptyGroup(f"group {question.group_id!r} has members")
        held = self.offsets.get(question.group_id, {})
        records: list[Record] = [(OffsetKey(question.group_id, *place), None) for place in held]
        if group.is_recorded:
            records.append((GroupKey(question.group_id), None))
        return Decision(question.group_id, None, tuple(records), ((token, Deleted()),))

    # ---- Offsets ----

    def _commit(self, question: Commit, token: Token, moment: Moment) -> Decision:
        group = self.groups.get(question.group_id)
        if group is None:
            group = ClassicGroup(question.group_id, state_since_ms=moment.wall_ms)
            offset_rules.check_committer(group, question)
            self._check_room(question.group_id)
        else:
            offset_rules.check_committer(group, question)
        held = self.offsets.get(question.group_id, {})
        records, found = offset_rules.commit(question.group_id, question, held, moment.wall_ms)
        member = group.members.get(question.member_id)
        if member is not None:  # a commit is a sign of life
            group = replace(group, members={**group.members, member.member_id: member.alive(moment.now)})
        return Decision(question.group_id, group, tuple(records), ((token, Committed(tuple(found))),))

    def _delete_offsets(self, question: DeleteOffsets, token: Token) -> Decision:
        group = self._existing(question.group_id)
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


def load(records: Iterable[tuple[Key, Value]], now: float) -> Coordinator:
    """The state of which these are the newest values of each key; timers start at `now`."""
    loaded = Coordinator()
    for key, value in records:
        add_loaded(loaded, key, value, now)
    return loaded


def add_loaded(loaded: Coordinator, key: Key, value: Value, now: float) -> None:
    """One record more, in any order."""
    if isinstance(key, OffsetKey) and isinstance(value, OffsetRecord):
        loaded.offsets.setdefault(key.group_id, {})[key.topic, key.partition] = value
        if key.group_id not in loaded.groups:
            loaded.groups[key.group_id] = ClassicGroup(key.group_id)
    elif isinstance(value, GroupRecord):
        loaded.groups[key.group_id] = group_from_record(key.group_id, value, now)


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


def _check_ids(question: Question) -> None:
    """Raises InvalidGroupId, InvalidRequest."""
    needs_name = isinstance(question, Join | Sync | Heartbeat | Leave)
    if len(question.group_id) > limits.MAX_ID_CHARACTERS or (needs_name and not question.group_id):
        raise errors.InvalidGroupId(
            f"a group id of {len(question.group_id)} characters: 1 to {limits.MAX_ID_CHARACTERS} are possible"
        )
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
