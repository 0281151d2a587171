"""The events of transcripts, in the words that stand there, and what they do to a `World`."""

from __future__ import annotations

import re
from collections.abc import Callable

from fencepost_controller.decisions.elections import ElectPreferredLeader, ElectUncleanLeader, RestorePreferredLeaders
from fencepost_controller.decisions.fence import standing
from fencepost_controller.decisions.isr import AlterPartition
from fencepost_controller.decisions.producers import AllocateProducerIds, InitProducer, RemoveName
from fencepost_controller.decisions.reassignment import ReassignPartitions
from fencepost_node.producers.identities import lowest_epoch
from fencepost_node.producers.producer_state import Duplicate
from fencepost_node.replication.reconciliation import (
    FollowerPosition,
    Push,
    StartOver,
    Truncate,
    answer_subscribe,
    cut_for,
)
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.metadata import FIRST_NAMED_ID, TopicConfig
from tests.unit.batches import header
from tests.unit.controller_story import partition_line
from tests.unit.transcript_world import Replica, World

LAG_MAX_S = 5.0  # of a follower, before its leader proposes to take it out of the in-sync set

Handler = Callable[[World, re.Match[str]], None]
EVENTS: list[tuple[re.Pattern[str], Handler]] = []


def event(pattern: str) -> Callable[[Handler], Handler]:
    """The handler of an event; in its pattern {word} is a number or a name, and {words…} several with spaces between."""
    words = re.sub(r"\{(\w+)…\}", r"(?P<\1>[\\w-]+(?: [\\w-]+)*)", pattern)
    expression = re.sub(r"\{(\w+)\}", r"(?P<\1>[\\w-]+)", words)

    def register(handler: Handler) -> Handler:
        EVENTS.append((re.compile(expression), handler))
        return handler

    return register


def happens(world: World, text: str) -> list[str]:
    """What every part decides because of this event. Raises ValueError for words that no event has."""
    found = [(handler, match) for pattern, handler in EVENTS if (match := pattern.fullmatch(text))]
    if len(found) != 1:
        raise ValueError(f"{len(found)} events are worded {text!r}")
    handler, match = found[0]
    world.story.lines.clear()
    handler(world, match)
    world.brokers_hear()
    return [_readable(line.strip()) for line in world.story.lines]


# ---- Brokers ----


@event(r"brokers {ids…}")
def _brokers(world: World, match: re.Match[str]) -> None:
    ids = [int(word) for word in match["ids"].split()]
    world.story.cluster(*ids)
    world.story.does(AllocateProducerIds(ids[0], world.story.epoch(ids[0])))
    for broker_id in ids:
        world.node(broker_id)


@event(r"topic {name} on {ids…}(?:, min\.insync\.replicas (?P<min_insync>\d+))?")
def _topic(world: World, match: re.Match[str]) -> None:
    config = TopicConfig(min_insync_replicas=int(match["min_insync"] or 1))
    world.story.topic(match["name"], tuple(int(word) for word in match["ids"].split()), config=config)
    partition = world.story.image.partitions[world.key(f"{match['name']}-0")]
    world.tell(partition_line(world.story.image, partition))


@event(r"broker {id} dies(?:, and its machine keeps of {name} what is below offset (?P<offset>\d+))?")
def _dies(world: World, match: re.Match[str]) -> None:
    node = world.node(match["id"])
    for replica in node.replicas.values():
        replica.leads = None
    if match["offset"] is not None:
        world.replica(node, match["name"]).cut_to(int(match["offset"]))
    world.story.dies(node.id)
    world.story.lines.pop(0)


@event(r"the controller declares broker {id} dead")
def _declared_dead(world: World, match: re.Match[str]) -> None:
    world.story.dies(int(match["id"]))
    world.story.lines.pop(0)


@event(r"broker {id} starts(?P<how> after a power failure| with an empty folder)?")
def _starts(world: World, match: re.Match[str]) -> None:
    node = world.node(match["id"])
    node.cut_off = False
    empty = match["how"] == " with an empty folder"
    if empty:
        node.replicas.clear()
    for replica in node.replicas.values():
        replica.leads, replica.high_watermark = None, 0  # it is in no file: a leader tells it again
    world.story.starts(node.id, lost_tail=match["how"] == " after a power failure", new_folder=empty)
    world.story.lines.pop(0)


@event(r"broker {id} is ready")
def _ready(world: World, match: re.Match[str]) -> None:
    world.story.is_ready(int(match["id"]))
    world.story.lines.pop(0)


@event(r"broker {id} wants to shut down")
def _shuts_down(world: World, match: re.Match[str]) -> None:
    world.story.shuts_down(int(match["id"]))
    world.story.lines.pop(0)


@event(r"the disk of broker {id} fails for {name}")
def _disk_fails(world: World, match: re.Match[str]) -> None:
    world.story.disk_fails(int(match["id"]), world.key(match["name"]))
    world.story.lines.pop(0)


@event(r"broker {id} is cut off from the controller")
def _cut_off(world: World, match: re.Match[str]) -> None:
    world.node(match["id"]).cut_off = True


@event(r"broker {id} hears from the controller again")
def _hears_again(world: World, match: re.Match[str]) -> None:
    world.node(match["id"]).cut_off = False


@event(r"(?P<seconds>\d+) seconds pass")
def _time_passes(world: World, match: re.Match[str]) -> None:
    world.now_s += int(match["seconds"])


# ---- Elections and in-sync sets ----


@event(r"broker {id} looks at its followers of {name}")
def _proposes(world: World, match: re.Match[str]) -> None:
    """It proposes another in-sync set where one is due."""
    node, key = world.node(match["id"]), world.key(match["name"])
    state = node.replicas[key].leads
    assert state is not None, f"broker {node.id} does not lead"
    live = frozenset(other.id for other in node.image.brokers.values() if not other.fenced and not other.shutting_down)
    following = frozenset(other for other in live if other in node.image.partitions[key].replicas)
    proposal = state.propose(following, LAG_MAX_S, world.now_s)
    if proposal is None:
        world.tell(f"broker {node.id}: nothing to propose")
        return
    world.tell(f"broker {node.id}: proposes {' '.join(map(str, proposal.isr))} in sync")
    epochs = {broker.id: broker.broker_epoch for broker in node.image.brokers.values()}
    command = AlterPartition(
        broker_id=node.id,
        broker_epoch=epochs[node.id],
        partition=key,
        leader_epoch=state.partition.leader_epoch,
        partition_epoch=proposal.partition_epoch,
        new_isr=tuple((member, epochs[member]) for member in proposal.isr),
    )
    before = world.story.image
    world.decides(command)
    if world.story.image is before:
        state.proposal_refused(proposal)


@event(r"an operator elects broker {id} for {name}, clean or not")
def _elects_uncleanly(world: World, match: re.Match[str]) -> None:
    topic, _, index = match["name"].rpartition("-")
    world.decides(ElectUncleanLeader(topic, int(index), int(match["id"])))


@event(r"an operator elects the preferred leader of {name}")
def _elects_preferred(world: World, match: re.Match[str]) -> None:
    topic, _, index = match["name"].rpartition("-")
    world.decides(ElectPreferredLeader(topic, int(index)))


@event(r"leaderships go back to brokers that are settled: {ids…}")
def _restores(world: World, match: re.Match[str]) -> None:
    world.decides(RestorePreferredLeaders(frozenset(int(word) for word in match["ids"].split())))


@event(r"an operator moves {name} to {ids…}")
def _moves(world: World, match: re.Match[str]) -> None:
    topic, _, index = match["name"].rpartition("-")
    target = tuple(int(word) for word in match["ids"].split())
    world.decides(ReassignPartitions(topic, ((int(index), target),)))


# ---- Producers ----


@event(r"an instance of {name} starts")
def _instance_starts(world: World, match: re.Match[str]) -> None:
    world.decides(InitProducer(match["name"]))


@event(r"the instance of {name} with {id} epoch {epoch} asks for its next epoch")
def _next_epoch(world: World, match: re.Match[str]) -> None:
    world.decides(InitProducer(match["name"], _producer_id(match["id"]), int(match["epoch"])))


@event(r"an operator removes the name {name}")
def _removes(world: World, match: re.Match[str]) -> None:
    world.decides(RemoveName(match["name"]))


@event(r"may the instance begin\?")
def _may_begin(world: World, match: re.Match[str]) -> None:
    """InitProducerId answers once the fence stands at the newest version."""
    image = world.story.image
    applied = {node.id: node.image.version for node in world.nodes.values() if world.is_running(node)}
    found = standing(image, applied)
    world.tell("yes: every live broker knows its epoch" if found.version == image.version else f"no: {found.why_not()}")


@event(r"{producer} epoch {epoch} sends (?P<first>\d+) to (?P<last>\d+) to {name}(?: at broker {id})?")
def _sends(world: World, match: re.Match[str]) -> None:
    """A batch with these sequences, sent to the leader, or to whom the producer takes for it."""
    first, last = int(match["first"]), int(match["last"])
    node = world.node(match["id"] or world.leader(match["name"]))
    replica = node.replicas.get(world.key(match["name"]))
    if replica is None or replica.leads is None:
        world.tell(f"broker {node.id}: NOT_LEADER_OR_FOLLOWER")
        return
    batch = header(
        last - first + 1,
        producer_id=_producer_id(match["producer"]),
        epoch=int(match["epoch"]),
        sequence=first,
        base_offset=replica.end_offset,
        leader_epoch=replica.leads.partition.leader_epoch,
    )
    try:
        fence_epoch = lowest_epoch(batch.producer_id, batch.producer_epoch, node.image)
        answer = replica.producers.check(batch, ever_held_records=bool(replica.headers), fence_epoch=fence_epoch)
    except FencepostError as error:
        world.tell(f"broker {node.id}: {error}")
        return
    if isinstance(answer, Duplicate):
        world.tell(f"broker {node.id}: a repeat of offsets {answer.base_offset} to {answer.last_offset}")
        return
    replica.append([batch])
    world.tell(f"broker {node.id}: appends at offsets {batch.base_offset} to {batch.last_offset}")
    replica.leads.appended(replica.end_offset, replica.end_offset, world.now_s)
    world.commit(node, world.key(match["name"]))


# ---- Replication ----


@event(r"broker {id} follows {name}(?: at broker {leader})?")
def _follows(world: World, match: re.Match[str]) -> None:
    """It subscribes, cuts what its leader does not have, and fetches the rest."""
    node = world.node(match["id"])
    leader = world.node(match["leader"] or world.leader(match["name"]))
    key = world.key(match["name"])
    mine, theirs = world.replica(node, match["name"]), leader.replicas[key]
    state = theirs.leads
    assert state is not None, f"broker {leader.id} does not lead"
    nothing_agrees = False
    while not isinstance(answer := _subscribe(mine, theirs, nothing_agrees), Push):
        cut = None if isinstance(answer, StartOver) else cut_for(answer, mine.epochs, 0, mine.end_offset)
        nothing_agrees = cut is None
        mine.cut_to(cut or 0)
        world.tell(f"broker {node.id}: " + ("starts over" if cut is None else f"cuts its log at offset {cut}"))
        if nothing_agrees:
            break
    missing = [one for one in theirs.headers if one.base_offset >= mine.end_offset]
    mine.append(missing)
    if missing:
        world.tell(f"broker {node.id}: stores offsets {missing[0].base_offset} to {missing[-1].last_offset}")
    else:
        world.tell(f"broker {node.id}: has everything")
    state.follower_joined(node.id, leader.image.brokers[node.id].broker_epoch, mine.end_offset, world.now_s)
    world.commit(leader, key)
    mine.high_watermark = min(theirs.high_watermark, mine.end_offset)


def _subscribe(mine: Replica, theirs: Replica, nothing_agrees: bool) -> Push | StartOver | Truncate:
    position = FollowerPosition(mine.end_offset, mine.epochs.last_epoch, nothing_agrees)
    return answer_subscribe(position, theirs.epochs, 0, theirs.end_offset)


@event(r"what is in {name}\?")
def _shows(world: World, match: re.Match[str]) -> None:
    key = world.key(match["name"])
    for node in sorted(world.nodes.values(), key=lambda node: node.id):
        if (replica := node.replicas.get(key)) is None:
            continue
        spans = ", ".join(
            f"{one.base_offset} to {one.last_offset} of epoch {one.leader_epoch}"
            f" ({_name_of(one.producer_id)} epoch {one.producer_epoch}, {one.base_sequence} to {one.last_sequence})"
            for one in replica.headers
        )
        world.tell(f"broker {node.id}: {spans or 'nothing'}")


def _producer_id(word: str) -> int:
    """`id-7`, or `named-0`: ids of named producers are a range of their own."""
    kind, _, number = word.partition("-")
    return int(number) + (FIRST_NAMED_ID if kind == "named" else 0)


def _name_of(producer_id: int) -> str:
    return f"named-{producer_id - FIRST_NAMED_ID}" if producer_id >= FIRST_NAMED_ID else f"id-{producer_id}"


def _readable(line: str) -> str:
    return re.sub(rf"\b(?:id )?({FIRST_NAMED_ID // 10}\d+)\b", lambda found: _name_of(int(found[1])), line)
