"""Where a leader epoch ends in the leader's log, for a reader who has read a batch of it."""

from __future__ import annotations

from fencepost_node.replica_manager import ReplicaManager


def end_offset_for_epoch(
    manager: ReplicaManager, topic_id: str, partition: int, leader_epoch: int, epoch: int
) -> tuple[int, int]:
    """(the largest epoch <= `epoch` in the leader's history, the offset where it ends); (-1, -1) where there is none.

    `leader_epoch`: whose leader is meant; -1: whichever. Raises what `ReplicaManager.leader` raises, NotLeaderOrFollower.
    """
    leadership = manager.leader(topic_id, partition, leader_epoch)
    leadership.require_leading()
    return leadership.log.leader_epochs.end_offset_for(epoch, leadership.log.log_end_offset)
