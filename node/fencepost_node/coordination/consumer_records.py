"""What of a consumer group stands in the log: the records of a change, and the group that records make. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fencepost_node.coordination.assignors import Assignment
from fencepost_node.coordination.consumer_group import ConsumerGroup, ConsumerMember, MemberState
from fencepost_node.coordination.records import (
    ConsumerGroupKey,
    ConsumerGroupRecord,
    ConsumerMemberKey,
    ConsumerMemberRecord,
    CurrentKey,
    CurrentRecord,
    Key,
    MemberTargetKey,
    MemberTargetRecord,
    Record,
    TargetKey,
    TargetRecord,
    Value,
)


def records_of(group: ConsumerGroup) -> dict[Key, Value]:
    """All that the log has of it."""
    group_id = group.group_id
    found: dict[Key, Value] = {
        ConsumerGroupKey(group_id): ConsumerGroupRecord(group.epoch, group.topics_hash),
        TargetKey(group_id): TargetRecord(group.assignment_epoch),
    }
    for member in group.members.values():
        found[ConsumerMemberKey(group_id, member.member_id)] = _member_record(member)
        found[CurrentKey(group_id, member.member_id)] = _current_record(member)
    for member_id, partitions in group.target.items():
        found[MemberTargetKey(group_id, member_id)] = MemberTargetRecord(partitions)
    return found


def _member_record(member: ConsumerMember) -> ConsumerMemberRecord:
    return ConsumerMemberRecord(
        instance_id=member.instance_id,
        rack_id=member.rack_id,
        client_id=member.client_id,
        client_host=member.client_host,
        topics=member.topics,
        rebalance_timeout_ms=member.rebalance_timeout_ms,
        assignor=member.assignor,
    )


def _current_record(member: ConsumerMember) -> CurrentRecord:
    return CurrentRecord(
        epoch=member.epoch,
        previous_epoch=member.previous_epoch,
        state=int(member.state),
        assigned=tuple(sorted(member.assigned.items())),
        revoking=tuple(sorted(member.revoking.items())),
    )


def records_between(before: ConsumerGroup | None, after: ConsumerGroup | None) -> list[Record]:
    """The records that make the one of the other; None: there is none. A heartbeat that changes nothing has none."""
    if before is not None and after is not None and _same(before, after):
        return []
    old = records_of(before) if before is not None and before.is_recorded else {}
    new = records_of(after) if after is not None else {}
    gone: list[Record] = [(key, None) for key in old if key not in new]
    return gone + [(key, value) for key, value in new.items() if old.get(key) != value]


def _same(before: ConsumerGroup, after: ConsumerGroup) -> bool:
    """Whether nothing that is recorded differs, told without a look at every partition."""
    if not (before.is_recorded and before.epoch == after.epoch and before.target is after.target):
        return False
    if before.topics_hash != after.topics_hash or before.members.keys() != after.members.keys():
        return False
    return all(
        member is (old := before.members[member_id])
        or replace(member, expires_at=old.expires_at, revoked_by=old.revoked_by) == old
        for member_id, member in after.members.items()
    )


@dataclass(slots=True)
class LoadedConsumerGroup:
    """A consumer group of which records come, in any order."""

    group_id: str
    epoch: int | None = None
    topics_hash: int = 0
    assignment_epoch: int = 0
    members: dict[str, ConsumerMemberRecord] = field(default_factory=dict)
    targets: dict[str, Assignment] = field(default_factory=dict)
    currents: dict[str, CurrentRecord] = field(default_factory=dict)

    def add(self, key: Key, value: Value) -> None:
        match key, value:
            case ConsumerGroupKey(), ConsumerGroupRecord():
                self.epoch, self.topics_hash = value.epoch, value.topics_hash
            case ConsumerMemberKey(), ConsumerMemberRecord():
                self.members[key.member_id] = value
            case TargetKey(), TargetRecord():
                self.assignment_epoch = value.assignment_epoch
            case MemberTargetKey(), MemberTargetRecord():
                self.targets[key.member_id] = value.partitions
            case CurrentKey(), CurrentRecord():
                self.currents[key.member_id] = value

    def finish(self, now: float, session_timeout_s: float) -> ConsumerGroup:
        """As a new leader finds it: timers start at `now`."""
        members = {
            member_id: self._member(member_id, record, now, session_timeout_s)
            for member_id, record in self.members.items()
        }
        return ConsumerGroup(
            self.group_id,
            epoch=self.epoch or 0,
            topics_hash=self.topics_hash,
            assignment_epoch=self.assignment_epoch,
            members=members,
            target=dict(self.targets),
            is_recorded=True,
        )

    def _member(
        self, member_id: str, record: ConsumerMemberRecord, now: float, session_timeout_s: float
    ) -> ConsumerMember:
        current = self.currents.get(member_id) or CurrentRecord(0, 0, 0, (), ())
        member = ConsumerMember(
            member_id=member_id,
            instance_id=record.instance_id,
            rack_id=record.rack_id,
            client_id=record.client_id,
            client_host=record.client_host,
            topics=record.topics,
            rebalance_timeout_ms=record.rebalance_timeout_ms,
            assignor=record.assignor,
            epoch=current.epoch,
            previous_epoch=current.previous_epoch,
            state=MemberState(current.state),
            assigned=dict(current.assigned),
            revoking=dict(current.revoking),
            expires_at=now + session_timeout_s,
        )
        if member.state is MemberState.REVOKING:
            return replace(member, revoked_by=now + record.rebalance_timeout_ms / 1000)
        return member


def partitions_by_topic(partitions: Mapping[tuple[bytes, int], int]) -> dict[bytes, dict[int, int]]:
    """Index and epoch, by topic id; in order."""
    found: dict[bytes, dict[int, int]] = {}
    for (topic_id, index), epoch in sorted(partitions.items()):
        found.setdefault(topic_id, {})[index] = epoch
    return found
