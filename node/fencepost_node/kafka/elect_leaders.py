"""ElectLeaders (key 43), versions 0 to 2: have the preferred leaders lead.

Supports: preferred leaders (type 0) of some partitions, or of all that another replica leads. Unclean elections (type 1) are
refused: an operator has to be shown first what is lost, as 'fencepost topic elect --unclean' does.

Errors of a partition: ELECTION_NOT_NEEDED (left out where all are asked for), PREFERRED_LEADER_NOT_AVAILABLE,
UNKNOWN_TOPIC_OR_PARTITION, ELIGIBLE_LEADERS_NOT_AVAILABLE (an unclean election), REQUEST_TIMED_OUT, NOT_CONTROLLER where
the controller is away. Of the request: INVALID_REQUEST for another type, or too many partitions.

Limits: `admin.MAX_CHANGES` partitions; where all are asked for, the first so many that another replica leads.
"""

from __future__ import annotations

from itertools import islice

from fencepost_node.kafka.admin import MAX_CHANGES, check_changes, code_and_message
from fencepost_node.kafka.context import KafkaContext
from fencepost_node.requests.topic_changes import TopicChanges
from fencepost_proto.kafka.messages.elect_leaders import (
    ElectLeadersRequest,
    ElectLeadersResponse,
    PartitionResult,
    ReplicaElectionResult,
)
from fencepost_proto.protocol.errors import (
    ElectionNotNeeded,
    EligibleLeadersNotAvailable,
    ErrorCode,
    FencepostError,
    InvalidRequest,
    UnknownTopicOrPartition,
)
from fencepost_proto.protocol.metadata import NO_LEADER, MetadataImage

PREFERRED, UNCLEAN = 0, 1


async def handle(context: KafkaContext, request: ElectLeadersRequest, version: int) -> ElectLeadersResponse:
    response = ElectLeadersResponse()
    changes = TopicChanges(context.link, context.feed, request.timeout_ms)
    try:
        if request.election_type not in (PREFERRED, UNCLEAN):
            raise InvalidRequest(f"election type {request.election_type}: 0 (preferred) or 1 (unclean)")
        if request.topic_partitions is None:
            wanted = _led_by_others(changes.image)
        else:
            wanted = {topic.topic: topic.partitions for topic in request.topic_partitions}
            check_changes(sum(map(len, wanted.values())))
    except FencepostError as error:
        response.error_code, _ = code_and_message(error)
        return response
    for topic_name, indexes in wanted.items():
        result = ReplicaElectionResult(topic=topic_name)
        response.replica_election_results.append(result)
        for index in dict.fromkeys(indexes):
            code, message = await _elect(changes, request.election_type, topic_name, index)
            if code != ErrorCode.ELECTION_NOT_NEEDED or request.topic_partitions is not None:
                result.partition_result.append(
                    PartitionResult(partition_id=index, error_code=code, error_message=message)
                )
    return response


def _led_by_others(image: MetadataImage) -> dict[str, list[int]]:
    """The partitions that are not led by their preferred leaders."""
    found = (p for p in image.partitions.values() if p.leader != p.replicas[0] and p.topic_id in image.topics)
    wanted: dict[str, list[int]] = {}
    for partition in islice(found, MAX_CHANGES):
        wanted.setdefault(image.topics[partition.topic_id].name, []).append(partition.index)
    return wanted


async def _elect(changes: TopicChanges, election_type: int, topic_name: str, index: int) -> tuple[int, str | None]:
    try:
        if election_type == UNCLEAN:
            _refuse_unclean(changes.image, topic_name, index)
        await changes.elect_preferred_leader(topic_name, index)
    except FencepostError as error:
        return code_and_message(error)
    return ErrorCode.NONE, None


def _refuse_unclean(image: MetadataImage, topic_name: str, index: int) -> None:
    partition = image.partitions.get((image.topic_ids.get(topic_name, ""), index))
    if partition is None:
        raise UnknownTopicOrPartition(f"topic {topic_name!r} has no partition {index}")
    if partition.leader != NO_LEADER:
        raise ElectionNotNeeded(f"{topic_name}-{index}: broker {partition.leader} leads")
    raise EligibleLeadersNotAvailable(
        f"{topic_name}-{index}: an unclean election may lose records; 'fencepost topic elect {topic_name} {index} "
        f"--unclean' shows which, and makes it"
    )
