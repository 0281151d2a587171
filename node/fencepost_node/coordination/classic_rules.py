"""The classic group protocol: what joins, syncs, heartbeats, departures and time do to one group. Pure.

Theory of operation. A *generation* is a set of members with one assignment, which their leader makes. A *rebalance* makes
the next one: everyone joins (PREPARING), the generation is numbered and recorded (COMPLETING), the leader's sync brings
the assignment, which is recorded, too (STABLE). Only then is anyone told the assignment.

=============  ==========================================  ============================================================
state          a member's heartbeat is answered            what ends it
=============  ==========================================  ============================================================
EMPTY          UNKNOWN_MEMBER_ID                           the first join → PREPARING, with a delay in which others come
PREPARING      REBALANCE_IN_PROGRESS                       all have joined, or the deadline → COMPLETING; nobody → EMPTY
COMPLETING     alive                                       the leader's sync → STABLE
STABLE         alive                                       a join that changes something, a departure → PREPARING
=============  ==========================================  ============================================================

From COMPLETING and STABLE a member that leaves, expires or does not sync in time leads to PREPARING.

Each function takes the group as it is and returns a `Step`: the group as it is to be, whether that has to be recorded,
and answers. Whoever carries it out appends the record, and only if that has succeeded takes the new group for the old
one; answers go out when the record is committed. So:

- **The append is refused** (no leader, too few in sync, the disk): nothing has happened. Who waits is told so, and
  `without_waiters` gives the group without them.
- **The process dies between append and commit**: the record is in the next leader's log, or it is not. Nobody was told of
  it. A generation that is lost this way had no member that knew it, so its number may be used again.
- **... after the commit, before an answer**: the next leader has the generation. A member that joins again is told of it
  (COMPLETING, same subscriptions), or begins the next one.
- **... between generation and assignment**: the next leader waits for the leader's sync as this one did, and removes the
  members that do not come. An assignment that was appended and not committed was told to nobody: the leader may give
  another one.
- **State went back** to an earlier record: only if the log did, below its high watermark, which an operator has to order.

A rebalance that a join had begun, ids that were given out and not joined with, and timers are forgotten with the leader:
members keep their generation until their timers, which start with the next leader, run out, or they ask. Departures are
recorded, of groups up to RECORDED_DEPARTURE_BYTES: each writes the group again. (Kafka records them with the next
generation only: a coordinator that begins in between waits a whole session for a member that said goodbye.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from fencepost_node.coordination import limits
from fencepost_node.coordination.classic_group import FOREVER, ClassicGroup, Member, State, Token
from fencepost_node.coordination.messages import (
    Alive,
    Heartbeat,
    Join,
    Joined,
    Leave,
    Leaver,
    Left,
    Sync,
    Synced,
)
from fencepost_node.coordination.moment import Moment
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError

Answer = Joined | Synced | Alive | Left | FencepostError


@dataclass(slots=True)
class Step:
    """A decision about one group, while it is made."""

    group: ClassicGroup
    moment: Moment
    answers: list[tuple[Token, Answer]] = field(default_factory=list)
    record: bool = False  # the group is to be recorded
    gone: list[str] = field(default_factory=list)  # members that have left or expired: to be recorded

    def answer(self, token: Token | None, answer: Answer) -> None:
        if token is not None:
            self.answers.append((token, answer))

    def put(self, member: Member) -> None:
        self.group = replace(self.group, members={**self.group.members, member.member_id: member})

    def put_all(self, members: Iterable[Member]) -> None:
        self.group = replace(self.group, members={member.member_id: member for member in members})

    def forget_pending(self, member_ids: Iterable[str]) -> None:
        gone = set(member_ids)
        pending = {member_id: at for member_id, at in self.group.pending.items() if member_id not in gone}
        self.group = replace(self.group, pending=pending)


# ---- Join ----


def join(group: ClassicGroup, request: Join, token: Token, moment: Moment) -> Step:
    """Raises what is wrong with the question."""
    check_join(request)
    step = Step(group, moment)
    _require_common_protocol(group, request)
    if request.member_id:
        _join_with_id(step, request, token)
    else:
        _join_without_id(step, request, token)
    return step


def check_join(request: Join) -> None:
    """Raises InvalidSessionTimeout, InconsistentGroupProtocol, InvalidRequest, for what no group would take."""
    if not limits.MIN_SESSION_TIMEOUT_MS <= request.session_timeout_ms <= limits.MAX_SESSION_TIMEOUT_MS:
        raise errors.InvalidSessionTimeout(
            f"session timeout of {request.session_timeout_ms} ms: {limits.MIN_SESSION_TIMEOUT_MS} to "
            f"{limits.MAX_SESSION_TIMEOUT_MS} are allowed"
        )
    if not request.protocol_type or not request.protocols:
        raise errors.InconsistentGroupProtocol(
            f"a join of group {request.group_id!r} names protocol type {request.protocol_type!r} and "
            f"{len(request.protocols)} protocols: one of each is needed"
        )
    if len(request.protocols) > limits.MAX_PROTOCOLS:
        raise errors.InvalidRequest(
            f"a join names {len(request.protocols)} protocols: at most {limits.MAX_PROTOCOLS} are taken"
        )
    for name in (request.protocol_type, *(name for name, _ in request.protocols)):
        if not 0 < len(name) <= limits.MAX_NAME_CHARACTERS:
            raise errors.InvalidRequest(
                f"a protocol's name of {len(name)} characters: 1 to {limits.MAX_NAME_CHARACTERS} are taken"
            )
    if len({name for name, _ in request.protocols}) < len(request.protocols):
        raise errors.InvalidRequest("a join names a protocol twice")


def _require_common_protocol(group: ClassicGroup, request: Join) -> None:
    if not group.members:
        return
    names = {name for name, _ in request.protocols}
    if request.protocol_type != group.protocol_type or not names & group.common_protocols():
        raise errors.InconsistentGroupProtocol(
            f"protocols {sorted(names)} of type {request.protocol_type!r} are none that all members of group "
            f"{group.group_id!r} have: {sorted(group.common_protocols())} of type {group.protocol_type!r}"
        )


def _join_without_id(step: Step, request: Join, token: Token) -> None:
    known = step.group.with_instance(request.instance_id) if request.instance_id is not None else None
    if known is not None:
        _replace_static(step, known, request, token)
        return
    _check_room(step.group, request)
    if request.instance_id is None and request.needs_id_first:
        expires_at = step.moment.now + request.session_timeout_ms / 1000
        step.group = replace(step.group, pending={**step.group.pending, request.fresh_member_id: expires_at})
        step.answer(token, MemberIdGiven(request.fresh_member_id))
        return
    _add(step, request.fresh_member_id, request, token)


class MemberIdGiven(errors.MemberIdRequired):
    """Join again, with this id."""

    def __init__(self, member_id: str) -> None:
        super().__init__(f"join again with the member id {member_id!r}")
        self.member_id = member_id


def _join_with_id(step: Step, request: Join, token: Token) -> None:
    group = step.group
    if request.member_id in group.pending:
        step.forget_pending([request.member_id])
        _check_room(step.group, request)
        _add(step, request.member_id, request, token)
        return
    member = member_of(group, request.member_id, request.instance_id)
    same = member.protocols == request.protocols
    if group.state is State.COMPLETING and same:
        _answer_current(step, member, token)  # the answer to the join before this one was lost
    elif group.state is State.STABLE and same and member.member_id != group.leader:
        _answer_current(step, member, token)
    else:
        _check_room(group, request, member)
        _rejoin(step, member, request, token)
        if group.state is State.PREPARING:
            _complete_when_all_joined(step)
        else:
            _prepare(step)


def member_of(group: ClassicGroup, member_id: str, instance_id: str | None) -> Member:
    """Raises UnknownMemberId; FencedInstanceId for a static member that another process has replaced."""
    if instance_id is not None:
        static = group.with_instance(instance_id)
        if static is None:
            raise errors.UnknownMemberId(f"group {group.group_id!r} has no member of instance id {instance_id!r}")
        if static.member_id != member_id:
            raise errors.FencedInstanceId(
                f"instance id {instance_id!r} of group {group.group_id!r} is member {static.member_id!r} now, "
                f"not {member_id!r}"
            )
    member = group.members.get(member_id)
    if member is None:
        raise errors.UnknownMemberId(f"group {group.group_id!r} has no member {member_id!r}")
    return member


def _check_room(group: ClassicGroup, request: Join, before: Member | None = None) -> None:
    """Raises GroupMaxSizeReached."""
    if before is None and len(group.members) + len(group.pending) >= limits.MAX_MEMBERS:
        raise errors.GroupMaxSizeReached(f"group {group.group_id!r} has {limits.MAX_MEMBERS} members, the most it may")
    size = sum(len(name) + len(subscription) for name, subscription in request.protocols)
    total = group.size_bytes - (before.size_bytes if before else 0) + size
    if total > limits.MAX_GROUP_BYTES:
        raise errors.GroupMaxSizeReached(
            f"subscriptions of {size} bytes would make those of group {group.group_id!r} {total} bytes: "
            f"at most {limits.MAX_GROUP_BYTES} are kept"
        )


def _as_member(member_id: str, request: Join, token: Token, now: float) -> Member:
    return Member(
        member_id=member_id,
        instance_id=request.instance_id,
        client_id=request.client_id,
        client_host=request.client_host,
        session_timeout_ms=request.session_timeout_ms,
        rebalance_timeout_ms=max(0, min(request.rebalance_timeout_ms, limits.MAX_REBALANCE_TIMEOUT_MS)),
        protocols=request.protocols,
        expires_at=now + request.session_timeout_ms / 1000,
        join=token,
    )


def _add(step: Step, member_id: str, request: Join, token: Token) -> None:
    group = step.group
    if not group.members:
        step.group = group = replace(group, protocol_type=request.protocol_type)
    step.put(_as_member(member_id, request, token, step.moment.now))
    if group.state is State.PREPARING:
        step.group = replace(step.group, has_grown=True)
        _complete_when_all_joined(step)
    else:
        _prepare(step)


def _rejoin(step: Step, member: Member, request: Join, token: Token) -> None:
    step.answer(member.join, _superseded(step.group))
    step.answer(member.sync, _superseded(step.group))
    again = _as_member(member.member_id, request, token, step.moment.now)
    step.put(replace(again, assignment=member.assignment, has_synced=member.has_synced))


def _superseded(group: ClassicGroup) -> FencepostError:
    return errors.RebalanceInProgress(f"a member of group {group.group_id!r} has asked again meanwhile")


def _answer_current(step: Step, member: Member, token: Token) -> None:
    """The generation is there already."""
    step.put(member.alive(step.moment.now))
    step.answer(token, step.group.joined(member.member_id))


def _replace_static(step: Step, known: Member, request: Join, token: Token) -> None:
    """A static member has started again: its new process takes its place, under a new id, and fences the old one."""
    group = step.group
    _check_room(group, request, known)
    fenced = errors.FencedInstanceId(
        f"instance id {request.instance_id!r} of group {group.group_id!r} has another process"
    )
    step.answer(known.join, fenced)
    step.answer(known.sync, fenced)
    new = _as_member(request.fresh_member_id, request, token, step.moment.now)
    new = replace(new, assignment=known.assignment, has_synced=known.has_synced)
    step.put_all(new if member is known else member for member in group.members.values())
    was_leader = known.member_id == group.leader
    if was_leader:
        step.group = replace(step.group, leader=new.member_id)
    if group.state is State.PREPARING:
        _complete_when_all_joined(step)
    elif group.state is State.STABLE and step.group.select_protocol() == group.protocol:
        step.put(replace(new, join=None))
        step.record = True
        joined = step.group.joined(new.member_id)
        if was_leader and request.may_skip_assignment:
            joined = replace(joined, skip_assignment=True)
        elif was_leader:  # it does not take itself for the leader, and assigns nothing
            joined = replace(joined, leader=known.member_id, members=())
        step.answer(token, joined)
    else:
        _prepare(step)


# ---- From one generation to the next ----


def _prepare(step: Step) -> None:
    """Begin a rebalance."""
    group, now = step.group, step.moment.now
    members = []
    for member in group.members.values():
        step.answer(member.sync, errors.RebalanceInProgress(f"group {group.group_id!r} rebalances"))
        members.append(replace(member, sync=None))
    step.put_all(members)
    timeout_s = group.rebalance_timeout_s
    if group.state is State.EMPTY:
        delay_s = min(step.moment.initial_delay_s, timeout_s)
        grows_until, deadline = now + timeout_s if delay_s > 0 else 0.0, now + delay_s
    else:
        grows_until, deadline = 0.0, now + timeout_s
    step.group = replace(
        step.group,
        state=State.PREPARING,
        deadline=deadline,
        grows_until=grows_until,
        has_grown=False,
        state_since_ms=step.moment.wall_ms,
    )
    _complete_when_all_joined(step)


def _complete_when_all_joined(step: Step) -> None:
    group = step.group
    if not group.members:
        _complete(step)
    elif group.grows_until:
        return  # the first rebalance of an empty group waits for its deadline
    elif not group.pending and all(member.join is not None for member in group.members.values()):
        _complete(step)


def _complete(step: Step) -> None:
    """Begin the next generation with those that have joined, and the static members that may still come back."""
    group, now = step.group, step.moment.now
    joined = [member for member in group.members.values() if member.join is not None]
    stay = [member for member in group.members.values() if member.join is not None or member.instance_id is not None]
    if stay and not joined:  # their sessions end, or one of them joins
        step.group = replace(group, deadline=now + max(group.rebalance_timeout_s, 1.0), grows_until=0.0)
        step.put_all(stay)
        return
    step.record = True
    step.group = replace(
        group,
        generation=group.generation + 1,
        state_since_ms=step.moment.wall_ms,
        deadline=FOREVER,
        grows_until=0.0,
        has_grown=False,
    )
    step.put_all(stay)
    if not stay:
        step.group = replace(step.group, state=State.EMPTY, protocol=None, leader=None)
        return
    leader = group.leader if group.leader in {member.member_id for member in joined} else joined[0].member_id
    step.group = replace(step.group, state=State.COMPLETING, protocol=step.group.select_protocol(), leader=leader)
    step.group = replace(step.group, deadline=now + step.group.rebalance_timeout_s)
    told = step.group
    begun = []
    for member in stay:
        step.answer(member.join, told.joined(member.member_id))
        fresh = replace(member, join=None, assignment=b"", has_synced=False)
        begun.append(fresh.alive(now) if member.join is not None else fresh)
    step.put_all(begun)


# ---- Sync ----


def sync(group: ClassicGroup, request: Sync, token: Token, moment: Moment) -> Step:
    """Raises what is wrong with the question."""
    member = member_of(group, request.member_id, request.instance_id)
    require_generation(group, request.generation)
    if request.protocol_type not in (None, group.protocol_type) or request.protocol not in (None, group.protocol):
        raise errors.InconsistentGroupProtocol(
            f"protocol {request.protocol!r} of type {request.protocol_type!r} is not that of group "
            f"{group.group_id!r}: {group.protocol!r} of type {group.protocol_type!r}"
        )
    step = Step(group, moment)
    if group.state is State.PREPARING:
        raise errors.RebalanceInProgress(f"group {group.group_id!r} rebalances")
    if group.state is State.STABLE:
        step.put(replace(member.alive(moment.now), has_synced=True))
        step.answer(token, _assignment(group, member))
        _all_synced(step)
        return step
    step.answer(member.sync, _superseded(group))
    step.put(replace(member.alive(moment.now), has_synced=True, sync=token))
    if member.member_id == group.leader:
        _assign(step, request)
    return step


def _assign(step: Step, request: Sync) -> None:
    """The leader has said what everyone gets. Members that it does not know get nothing."""
    assignments = {member_id: data for member_id, data in request.assignments if member_id in step.group.members}
    size = sum(len(data) for data in assignments.values())
    if size > limits.MAX_GROUP_BYTES:
        raise errors.GroupMaxSizeReached(
            f"assignments of {size} bytes for group {step.group.group_id!r}: at most {limits.MAX_GROUP_BYTES} are kept"
        )
    step.record = True
    step.group = replace(step.group, state=State.STABLE, state_since_ms=step.moment.wall_ms)
    assigned = []
    for member in step.group.members.values():
        given = replace(member, assignment=assignments.get(member.member_id, b""), sync=None)
        if member.sync is not None:
            step.answer(member.sync, _assignment(step.group, given))
            given = given.alive(step.moment.now)
        assigned.append(given)
    step.put_all(assigned)
    _all_synced(step)


def _all_synced(step: Step) -> None:
    if all(member.has_synced for member in step.group.members.values()):
        step.group = replace(step.group, deadline=FOREVER)


def _assignment(group: ClassicGroup, member: Member) -> Synced:
    return Synced(group.protocol_type or "", group.protocol or "", member.assignment)


def require_generation(group: ClassicGroup, generation: int) -> None:
    if generation != group.generation:
        raise errors.IllegalGeneration(
            f"generation {generation} is not that of group {group.group_id!r}, which is {group.generation}"
        )


# ---- Heartbeat, leave ----


def heartbeat(group: ClassicGroup, request: Heartbeat, token: Token, moment: Moment) -> Step:
    """Raises what is wrong with the question."""
    member = member_of(group, request.member_id, request.instance_id)
    require_generation(group, request.generation)
    step = Step(group, moment)
    step.put(member.alive(moment.now))
    rebalances = group.state is State.PREPARING
    step.answer(
        token, errors.RebalanceInProgress(f"group {group.group_id!r} rebalances: join again") if rebalances else Alive()
    )
    return step


def leave(group: ClassicGroup, request: Leave, token: Token, moment: Moment) -> Step:
    """Each of the members on its own; the group rebalances once."""
    step = Step(group, moment)
    found: list[FencepostError | None] = []
    gone: dict[str, None] = {}
    for leaver in request.members:
        try:
            member_id = _leaving(step, leaver)
            if member_id is not None:
                gone[member_id] = None
            found.append(None)
        except FencepostError as error:
            found.append(error)
    _remove(step, list(gone), "has left")
    step.answer(token, Left(tuple(found)))
    return step


def _leaving(step: Step, leaver: Leaver) -> str | None:
    """The member that leaves; None: it was not more than an id. Raises UnknownMemberId, FencedInstanceId."""
    if leaver.member_id in step.group.pending:
        step.forget_pending([leaver.member_id])
        return None
    member_id = leaver.member_id
    if not member_id and leaver.instance_id is not None:
        static = step.group.with_instance(leaver.instance_id)
        member_id = static.member_id if static is not None else ""
    return member_of(step.group, member_id, leaver.instance_id).member_id


def _remove(step: Step, member_ids: list[str], why: str) -> None:
    """Take these out, and rebalance where there were any. A rebalance may have waited for them, or for ids that are gone."""
    group = step.group
    gone = [group.members[member_id] for member_id in member_ids]
    for member in gone:
        unknown = errors.UnknownMemberId(f"member {member.member_id!r} {why}")
        step.answer(member.join, unknown)
        step.answer(member.sync, unknown)
    if gone:
        step.gone += member_ids
        step.put_all(member for member in group.members.values() if member not in gone)
        if group.leader not in step.group.members:
            step.group = replace(step.group, leader=next(iter(step.group.members), None))
    if group.state is State.PREPARING:
        _complete_when_all_joined(step)
    elif gone:
        _prepare(step)


# ---- Time ----


def tick(group: ClassicGroup, moment: Moment) -> Step:
    """What is due at this moment."""
    step, now = Step(group, moment), moment.now
    step.forget_pending([member_id for member_id, at in group.pending.items() if at <= now])
    expired = [member.member_id for member in group.members.values() if not member.waits and member.expires_at <= now]
    if expired or len(step.group.pending) < len(group.pending):
        _remove(step, expired, "was not heard of for its session timeout")
    if step.group.deadline <= now:
        _deadline(step)
    return step


def _deadline(step: Step) -> None:
    group, now = step.group, step.moment.now
    if group.state is State.PREPARING:
        if group.has_grown and now < group.grows_until:
            deadline = min(now + step.moment.initial_delay_s, group.grows_until)
            step.group = replace(group, deadline=deadline, has_grown=False)
        else:
            _complete(step)
        return
    late = [member.member_id for member in group.members.values() if not member.has_synced]
    step.group = replace(group, deadline=FOREVER)
    _remove(step, late, "has not asked for its assignment within the rebalance timeout")


def without_waiters(
    group: ClassicGroup, error: FencepostError, now: float
) -> tuple[ClassicGroup, list[tuple[Token, Answer]]]:
    """The group, after a step that could not be carried out: whoever waits is told `error`, and may ask again."""
    answers: list[tuple[Token, Answer]] = []
    members = dict(group.members)
    for member in group.members.values():
        answers += [(token, error) for token in (member.join, member.sync) if token is not None]
        if member.waits:
            synced = member.has_synced and member.sync is None
            members[member.member_id] = replace(member.alive(now), join=None, sync=None, has_synced=synced)
    deadline = now + max(group.rebalance_timeout_s, 1.0) if group.deadline < FOREVER else FOREVER
    return replace(group, members=members, deadline=deadline, grows_until=0.0), answers
