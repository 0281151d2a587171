"""An unclean election that leaves a history of what its operator was shown, for `fencepost check`."""

from __future__ import annotations

from fencepost import AdminClient
from fencepost.descriptions import ElectionCandidate
from fencepost.history import History

OPERATOR = "operator"  # the process, in the history


async def elect_recorded(
    admin: AdminClient, topic: str, partition: int, chosen: ElectionCandidate, history: History
) -> None:
    """Raises as `AdminClient.elect_leader` does."""
    order = history.invoke_election(topic, partition, chosen.kept_end_offset, chosen.log_end_offset)
    try:
        await admin.elect_leader(topic, partition, unclean=True, leader=chosen)
    except BaseException as error:
        history.complete_election(order, topic, partition, error)
        raise
    history.complete_election(order, topic, partition)
