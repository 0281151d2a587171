"""Consumer groups of KIP-848: what heartbeats and time do to one group. Pure.

Theory of operation. Each heartbeat does as much as it can, in this order:

1. the member is found, or added (epoch 0), or goes (-1, or -2 as a static member that comes back);
2. where its subscription is another one, or the subscribed topics are, the group epoch rises;
3. where the group epoch is above the assignment epoch, a target assignment is made for all members;
4. the member moves towards its target (`reconcile`), as far as the others let go of what it is to have;
5. it is told its epoch, and its partitions where they have changed.

What of the group has changed is recorded as one batch (`consumer_records`), before the member is told. So whatever dies
between two lines, the next leader has the group before the heartbeat or after it, and a member that lost its answer asks
again with the epoch before (`previous_epoch`), which is accepted for as long as it claims no more than it has.

A member that does not give up its partitions within its rebalance timeout, or is not heard of for the session timeout, is
removed. Timers start with a new leader.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from fencepost_node.coordination import limits
from fencepost_node.coordination.assignors import ASSIGNORS, DEFAULT_ASSIGNOR, Assignment, Subscriber, TopicPartition
from fencepost_node.coordination.consumer_group import (
    FOREVER,
    JOINING,
    LEAVING,
    STATIC_LEAVING,
    ConsumerGroup,
    ConsumerMember,
    MemberState,
)
from fencepost_node.coordination.messages import ConsumerAlive, ConsumerHeartbeat
from fencepost_node.coordination.moment import KnownTopics, Moment
from fencepost_proto.protocol import errors

# ---- Heartbeats ----


def heartbeat(group: ConsumerGroup, request: ConsumerHeartbeat, moment: Moment) -> tuple[ConsumerGroup, ConsumerAlive]:
    """Raises what is wrong with the question."""
    check_heartbeat(request)
    if request.member_epoch in (LEAVING, STATIC_LEAVING):
        return _leave(group, request)
    is_new = request.member_id not in group.members
    group, found = _found(group, request)
    is_new = is_new and found.member_id not in group.members  # else a static member is back
    member = replace(_as_told(found, request), expires_at=moment.now + moment.consumer.session_timeout_s)
    group = _put(group, member)
    subscription = (found.topics, found.assignor)
    _check_room(group)
    group = _with_epoch(group, moment.topics, changed=is_new or subscription != (member.topics, member.assignor))
    group = _with_target(group, moment.topics)
    member = reconcile(group, member, request.owned, moment.now)
    group = _put(group, member)
    is_news = (
        request.is_full
        or request.member_epoch in (JOINING, found.previous_epoch)
        or found.assigned.keys() != member.assigned.keys()
    )
    return group, ConsumerAlive(
        member_id=member.member_id,
        member_epoch=member.epoch,
        heartbeat_interval_ms=moment.consumer.heartbeat_interval_ms,
        session_timeout_ms=int(moment.consumer.session_timeout_s * 1000),
        assignment=tuple(sorted(member.assigned)) if is_news else None,
    )


def _check_room(group: ConsumerGroup) -> None:
    """Raises GroupMaxSizeReached."""
    size = sum(len(name) for member in group.members.values() for name in member.topics)
    if size > limits.MAX_GROUP_BYTES:
        raise errors.GroupMaxSizeReached(
            f"subscriptions of group {group.group_id!r} would be {size} characters: at most "
            f"{limits.MAX_GROUP_BYTES} are kept"
        )


def check_heartbeat(request: ConsumerHeartbeat) -> None:
    """Raises InvalidRequest, UnsupportedAssignor, for what no group would take."""
    if not 0 < len(request.member_id) <= limits.MAX_ID_CHARACTERS:
        raise errors.InvalidRequest(
            f"a member id of {len(request.member_id)} characters: 1 to {limits.MAX_ID_CHARACTERS} are possible"
        )
    for what, text in (("instance id", request.instance_id), ("rack id", request.rack_id)):
        if text is not None and not 0 < len(text) <= limits.MAX_ID_CHARACTERS:
            raise errors.InvalidRequest(
                f"an {what} of {len(text)} characters: 1 to {limits.MAX_ID_CHARACTERS} are possible"
            )
    if request.assignor is not None and request.assignor not in ASSIGNORS:
        raise errors.UnsupportedAssignor(
            f"assignor {request.assignor[:100]!r} is not known: there are {sorted(ASSIGNORS)}"
        )
    if request.topics is not None and len(request.topics) > limits.MAX_SUBSCRIBED_TOPICS:
        raise errors.InvalidRequest(
            f"a subscription to {len(request.topics)} topics: at most {limits.MAX_SUBSCRIBED_TOPICS} are taken"
        )
    if request.member_epoch < STATIC_LEAVING:
        raise errors.InvalidRequest(f"member epoch {request.member_epoch}: {STATIC_LEAVING} is the least")
    if request.member_epoch == STATIC_LEAVING and request.instance_id is None:
        raise errors.InvalidRequest(f"member epoch {STATIC_LEAVING} is for static members")
    if request.member_epoch == JOINING and (request.topics is None or request.rebalance_timeout_ms <= 0):
        raise errors.InvalidRequest("a member that joins says what it subscribes to, and its rebalance timeout")


def _found(group: ConsumerGroup, request: ConsumerHeartbeat) -> tuple[ConsumerGroup, ConsumerMember]:
    """The member that sends this, in the group that has it. Raises UnknownMemberId, FencedMemberEpoch, FencedInstanceId,
    UnreleasedInstanceId, GroupMaxSizeReached."""
    static = group.with_instance(request.instance_id) if request.instance_id is not None else None
    if static is not None and static.member_id != request.member_id:
        if request.member_epoch != JOINING:
            raise errors.FencedInstanceId(f"instance id {request.instance_id!r} is member {static.member_id!r} now")
        if not static.has_left_for_a_while:
            raise errors.UnreleasedInstanceId(
                f"instance id {request.instance_id!r} is in use by member {static.member_id!r}"
            )
        return _take_over(group, static, request)
    member = group.members.get(request.member_id)
    if request.member_epoch == JOINING:
        if member is not None:
            return group, replace(member, epoch=JOINING) if member.has_left_for_a_while else member
        if len(group.members) >= limits.MAX_MEMBERS:
            raise errors.GroupMaxSizeReached(
                f"group {group.group_id!r} has {limits.MAX_MEMBERS} members, the most it may"
            )
        return group, _new_member(request)
    if member is None:
        raise errors.UnknownMemberId(f"group {group.group_id!r} has no member {request.member_id!r}")
    _check_epoch(group, member, request)
    return group, member


def _check_epoch(group: ConsumerGroup, member: ConsumerMember, request: ConsumerHeartbeat) -> None:
    """Raises FencedMemberEpoch."""
    if request.member_epoch == member.epoch:
        return
    answer_was_lost = (
        request.member_epoch == member.previous_epoch
        and request.owned is not None
        and set(request.owned) <= set(member.assigned)
    )
    if not answer_was_lost:
        raise errors.FencedMemberEpoch(
            f"member {member.member_id!r} of group {group.group_id!r} is in epoch {member.epoch}, not "
            f"{request.member_epoch}"
        )


def _new_member(request: ConsumerHeartbeat) -> ConsumerMember:
    return ConsumerMember(
        member_id=request.member_id,
        instance_id=request.instance_id,
        rack_id=request.rack_id,
        client_id=request.client_id[: limits.MAX_ID_CHARACTERS],
        client_host=request.client_host,
        topics=(),
        rebalance_timeout_ms=limits.MAX_REBALANCE_TIMEOUT_MS,
        assignor=None,
    )


def _take_over(
    group: ConsumerGroup, static: ConsumerMember, request: ConsumerHeartbeat
) -> tuple[ConsumerGroup, ConsumerMember]:
    """A static member is back, under a new id: it has what it had, and what was to be its own."""
    member = replace(
        _new_member(request),
        topics=static.topics,
        assignor=static.assignor,
        assigned=static.assigned,
        rebalance_timeout_ms=static.rebalance_timeout_ms,
    )
    target = {
        (member.member_id if member_id == static.member_id else member_id): partitions
        for member_id, partitions in group.target.items()
    }
    members = {each.member_id: each for each in (member if each is static else each for each in group.members.values())}
    return replace(group, members=members, target=target), member


def _as_told(member: ConsumerMember, request: ConsumerHeartbeat) -> ConsumerMember:
    """What a heartbeat does not say has not changed."""
    timeout_ms = request.rebalance_timeout_ms
    return replace(
        member,
        rack_id=member.rack_id if request.rack_id is None else request.rack_id,
        topics=member.topics if request.topics is None else tuple(sorted(set(request.topics))),
        assignor=member.assignor if request.assignor is None else request.assignor,
        rebalance_timeout_ms=(
            min(timeout_ms, limits.MAX_REBALANCE_TIMEOUT_MS) if timeout_ms > 0 else member.rebalance_timeout_ms
        ),
    )


def _put(group: ConsumerGroup, member: ConsumerMember) -> ConsumerGroup:
    return replace(group, members={**group.members, member.member_id: member})


def _leave(group: ConsumerGroup, request: ConsumerHeartbeat) -> tuple[ConsumerGroup, ConsumerAlive]:
    static = group.with_instance(request.instance_id) if request.instance_id is not None else None
    if static is not None and static.member_id != request.member_id:
        raise errors.FencedInstanceId(f"instance id {request.instance_id!r} is member {static.member_id!r} now")
    member = group.members.get(request.member_id)
    if member is None:
        raise errors.UnknownMemberId(f"group {group.group_id!r} has no member {request.member_id!r}")
    answer = ConsumerAlive(request.member_id, request.member_epoch, 0, 0, None)
    if request.member_epoch == STATIC_LEAVING:
        away = replace(member, epoch=STATIC_LEAVING, previous_epoch=member.epoch, revoking={}, revoked_by=FOREVER)
        return _put(group, replace(away, state=MemberState.STABLE)), answer
    return without(group, [member.member_id]), answer


def without(group: ConsumerGroup, member_ids: Iterable[str]) -> ConsumerGroup:
    """The group after these have gone, in its next epoch."""
    gone = set(member_ids)
    return replace(
        group,
        epoch=group.epoch + 1,
        members={member_id: member for member_id, member in group.members.items() if member_id not in gone},
        target={member_id: target for member_id, target in group.target.items() if member_id not in gone},
    )


# ---- The target ----


def _with_epoch(group: ConsumerGroup, topics: KnownTopics, *, changed: bool) -> ConsumerGroup:
    """The next group epoch, where subscriptions have changed, or the topics have that they name."""
    if not changed and topics.version == group.topics_version:
        return group
    found = topics_hash(group, topics)
    raised = group.epoch + (changed or found != group.topics_hash)
    return replace(group, epoch=raised, topics_hash=found, topics_version=topics.version)


def topics_hash(group: ConsumerGroup, topics: KnownTopics) -> int:
    """Of what is known of the subscribed topics; never 0 where there is any."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted({name for member in group.members.values() for name in member.topics}):
        facts = topics.find(name)
        if facts is not None:
            digest.update(name.encode() + b"\0" + facts.topic_id + facts.partitions.to_bytes(4))
    return int.from_bytes(digest.digest(), signed=True) or 1


def _with_target(group: ConsumerGroup, topics: KnownTopics) -> ConsumerGroup:
    """A target assignment for the group's epoch."""
    if group.assignment_epoch == group.epoch:
        return group
    subscribers: dict[str, Subscriber] = {}
    counts: dict[bytes, int] = {}
    for member in group.members.values():
        facts = [found for name in member.topics if (found := topics.find(name)) is not None]
        counts.update((each.topic_id, each.partitions) for each in facts)
        name = member.instance_id or member.member_id
        subscribers[member.member_id] = Subscriber(name, frozenset(each.topic_id for each in facts))
    target = ASSIGNORS[assignor_of(group)](subscribers, counts, group.target)
    return replace(group, target=target, assignment_epoch=group.epoch)


def assignor_of(group: ConsumerGroup) -> str:
    """The one that most members ask for; the default where nobody does."""
    votes: dict[str, int] = {}
    for member in group.members.values():
        if member.assignor is not None:
            votes[member.assignor] = votes.get(member.assignor, 0) + 1
    return max(sorted(votes), key=lambda name: votes[name]) if votes else DEFAULT_ASSIGNOR


# ---- A member's way to its target ----


def reconcile(
    group: ConsumerGroup, member: ConsumerMember, owned: tuple[TopicPartition, ...] | None, now: float
) -> ConsumerMember:
    """The member, as near to its target as it may come now. `owned`: what it says it has; None: it does not say.

    The group is that of `member`, with every other member as it is.
    """
    has = None if owned is None else set(owned)
    if member.state is MemberState.REVOKING:
        if has is None or has & set(member.revoking):
            return member  # it has not let go yet
    elif member.state is MemberState.STABLE and member.epoch == group.assignment_epoch:
        return member
    target, epoch = group.target_of(member.member_id), group.assignment_epoch
    kept = {partition: given for partition, given in member.assigned.items() if partition in target}
    lost = {partition: given for partition, given in member.assigned.items() if partition not in target}
    if lost and (has is None or has & set(lost)):
        timeout_s = member.rebalance_timeout_ms / 1000
        return replace(member, state=MemberState.REVOKING, assigned=kept, revoking=lost, revoked_by=now + timeout_s)
    missing = target - kept.keys()
    free = _free(group, member, missing)
    moved = replace(
        member,
        state=MemberState.STABLE if len(free) == len(missing) else MemberState.WAITING,
        assigned=kept | dict.fromkeys(sorted(free), epoch),
        revoking={},
        revoked_by=FOREVER,
    )
    return moved if member.epoch == epoch else replace(moved, epoch=epoch, previous_epoch=member.epoch)


def _free(group: ConsumerGroup, member: ConsumerMember, wanted: Assignment) -> set[TopicPartition]:
    """Of these, the partitions that no one else has."""
    if not wanted:
        return set()
    owners = group.owners()
    return {partition for partition in wanted if owners.get(partition, member.member_id) == member.member_id}


# ---- Commits, and time ----


def check_committer(group: ConsumerGroup, member_id: str, epoch: int, partitions: Iterable[TopicPartition]) -> None:
    """Whether that member in that epoch may commit for these. Raises UnknownMemberId, StaleMemberEpoch.

    An epoch before the member's own will do for partitions that it was given in that epoch or before (KIP-1251).
    """
    member = group.members.get(member_id)
    if member is None:
        raise errors.UnknownMemberId(f"group {group.group_id!r} has no member {member_id!r}")
    if epoch == member.epoch:
        return
    is_its_own = 0 <= epoch < member.epoch and all(
        member.assigned.get(partition, epoch + 1) <= epoch for partition in partitions
    )
    if not is_its_own:
        raise errors.StaleMemberEpoch(
            f"member {member_id!r} of group {group.group_id!r} is in epoch {member.epoch}, not {epoch}"
        )


def check_reader(group: ConsumerGroup, member_id: str, epoch: int) -> None:
    """Whether that member in that epoch may ask for offsets. Raises UnknownMemberId, StaleMemberEpoch."""
    member = group.members.get(member_id)
    if member is None:
        raise errors.UnknownMemberId(f"group {group.group_id!r} has no member {member_id!r}")
    if epoch != member.epoch:
        raise errors.StaleMemberEpoch(
            f"member {member_id!r} of group {group.group_id!r} is in epoch {member.epoch}, not {epoch}"
        )


def expired(group: ConsumerGroup, now: float) -> list[str]:
    """The members whose time is over."""
    return [member.member_id for member in group.members.values() if min(member.expires_at, member.revoked_by) <= now]
