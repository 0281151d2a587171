"""What clients ask about groups, free of any protocol: offsets are checked against the metadata, long questions are cut up.

Offsets are committed OFFSETS_IN_A_TURN at a time, so one long request does not hold up a broker. Each of these parts is
committed whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fencepost_node.coordination import limits
from fencepost_node.coordination.messages import (
    Commit,
    Committed,
    DeleteOffsets,
    FetchedOffset,
    FetchedOffsets,
    FetchOffsets,
    OffsetToCommit,
)
from fencepost_node.coordination.offset_rules import NO_OFFSET
from fencepost_node.coordination.records import NO_TOPIC_ID
from fencepost_node.coordinators.group_coordinators import GroupCoordinators
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.topic_ids import to_wire

OFFSETS_IN_A_TURN = 500  # committed or deleted by one question: some milliseconds


class AskedOffset(NamedTuple):
    """An offset that a client commits."""

    topic: str
    partition: int
    offset: int
    leader_epoch: int = -1
    metadata: str = ""


class Committer(NamedTuple):
    """Who commits: a member of a generation, or no member of any."""

    group_id: str
    generation: int = -1
    member_id: str = ""
    instance_id: str | None = None


async def commit_offsets(
    coordinators: GroupCoordinators, image: MetadataImage, committer: Committer, offsets: Sequence[AskedOffset]
) -> list[FencepostError | None]:
    """An error, or none, for each. UnknownTopicOrPartition for what is not in the metadata."""
    if len(offsets) > limits.MAX_PARTITIONS_OF_A_QUESTION:
        too_many = errors.InvalidRequest(
            f"{len(offsets)} offsets in one commit: at most {limits.MAX_PARTITIONS_OF_A_QUESTION} are taken"
        )
        return [too_many] * len(offsets)
    refusal = coordinators.refusal(committer.group_id)
    if refusal is not None:  # and that is all to say: a broker that has just started knows no topic yet
        return [refusal] * len(offsets)
    found: list[FencepostError | None] = [_missing(image, each.topic, each.partition) for each in offsets]
    there = [index for index, error in enumerate(found) if error is None]
    for first in range(0, max(len(there), 1 - len(offsets)), OFFSETS_IN_A_TURN):
        part = there[first : first + OFFSETS_IN_A_TURN]
        asked = tuple(_to_commit(image, offsets[index]) for index in part)
        answer = await coordinators.ask(
            Commit(committer.group_id, committer.generation, committer.member_id, committer.instance_id, asked)
        )
        _fill(found, part, answer)
    return found


def _to_commit(image: MetadataImage, asked: AskedOffset) -> OffsetToCommit:
    topic_id = to_wire(image.topic_ids[asked.topic])
    return OffsetToCommit(asked.topic, asked.partition, topic_id, asked.offset, asked.leader_epoch, asked.metadata)


def _missing(image: MetadataImage, topic: str, partition: int) -> FencepostError | None:
    topic_id = image.topic_ids.get(topic)
    if topic_id is None or (topic_id, partition) not in image.partitions:
        return errors.UnknownTopicOrPartition(f"there is no partition {topic}-{partition}")
    return None


def _fill(found: list[FencepostError | None], places: Sequence[int], answer: object) -> None:
    for number, place in enumerate(places):
        found[place] = answer.errors[number] if isinstance(answer, Committed) else as_error(answer)


def as_error(answer: object) -> FencepostError:
    """What is wrong, of an answer that is not the one that was asked for."""
    return answer if isinstance(answer, FencepostError) else errors.UnknownServerError(f"unexpected answer {answer!r}")


async def fetch_offsets(
    coordinators: GroupCoordinators, image: MetadataImage, question: FetchOffsets
) -> list[FetchedOffset] | FencepostError:
    """An offset that was committed for an earlier topic of the same name is none."""
    answer = await coordinators.ask(question)
    if not isinstance(answer, FetchedOffsets):
        return as_error(answer)
    found = []
    for each in answer.offsets:
        topic_id = image.topic_ids.get(each.topic)
        is_of_another = topic_id is not None and any(each.topic_id) and to_wire(topic_id) != each.topic_id
        if not is_of_another:
            found.append(each)
        elif question.partitions is not None:
            found.append(FetchedOffset(each.topic, each.partition, NO_TOPIC_ID, NO_OFFSET, -1, ""))
    return found


async def delete_offsets(
    coordinators: GroupCoordinators, group_id: str, partitions: Sequence[tuple[str, int]]
) -> list[FencepostError | None]:
    """An error, or none, for each."""
    found: list[FencepostError | None] = [None] * len(partitions)
    for first in range(0, max(len(partitions), 1), OFFSETS_IN_A_TURN):
        places = range(first, min(first + OFFSETS_IN_A_TURN, len(partitions)))
        answer = await coordinators.ask(DeleteOffsets(group_id, tuple(partitions[place] for place in places)))
        _fill(found, places, answer)
    return found
