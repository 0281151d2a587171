"""An unclean election that leaves a history of what its operator was shown, for `fencepost check`."""

from __future__ import annotations

from fencepost import AdminClient
from fencepost.descriptions import ElectionCandidate
from fencepost.history import History
from fencepost_proto.protocol.errors import ElectionNotNeeded

OPERATOR = "operator"  # the process, in the history


async def elect_recorded(
    admin: AdminClient, topic: str, partition: int, chosen: ElectionCandidate, history: History
) -> None:
    """Raises as `AdminClient.elect_leader` does.

    It is recorded as done where the broker leads in the very next leader epoch. Else an answer was lost and it was asked
    for again, and a replica that has everything may have led in between: then nothing is known for certain.
    """
    before = (await admin.describe_topic(topic)).partitions[partition]
    order = history.invoke_election(topic, partition, chosen.kept_end_offset, chosen.log_end_offset)
    try:
        await admin.elect_leader(topic, partition, unclean=True, leader=chosen)
        after = (await admin.describe_topic(topic)).partitions[partition]
    except BaseException as error:
        history.complete_election(order, topic, partition, error)
        raise
    is_next = (after.leader, after.leader_epoch) == (chosen.broker_id, before.leader_epoch + 1)
    unknown = ElectionNotNeeded(f"broker {after.leader} leads in epoch {after.leader_epoch}")
    history.complete_election(order, topic, partition, None if is_next else unknown)
