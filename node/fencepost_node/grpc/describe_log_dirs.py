"""DescribeLogDirs: every replica on this broker, for operators and tests.

Supports: all of them, leaders and followers, in topic-id and partition order, with what has gone wrong with a replica that
is offline here, or that leads and cannot do all that it should; behind these the partitions whose logs could not be opened,
with the reason and without numbers. Counters begin with the process.

Errors: none. Limits: none; one short line for each replica.
"""

from __future__ import annotations

from fencepost_node.log.leader_epochs import NO_EPOCH
from fencepost_node.replica_manager import ReplicaManager
from fencepost_proto.protocol.v1 import broker_pb2


def describe_log_dirs(
    manager: ReplicaManager, broker_id: int, recovery_seconds: float
) -> broker_pb2.DescribeLogDirsResponse:
    return broker_pb2.DescribeLogDirsResponse(
        broker_id=broker_id,
        replicas=[
            broker_pb2.ReplicaInfo(
                topic_id=topic_id,
                partition=partition,
                is_leader=replica.is_leader,
                leader_epoch=replica.leader_epoch,
                log_start_offset=replica.log.log_start_offset,
                log_end_offset=replica.log.log_end_offset,
                high_watermark=replica.high_watermark,
                size_bytes=replica.log.size_bytes,
                appended_batches=replica.counts.appended,
                deduplicated_batches=replica.counts.repeated,
                failure=replica.failure or replica.trouble,
                last_epoch=replica.log.last_epoch,
            )
            for (topic_id, partition), replica in sorted(manager.replicas.items())
        ]
        + [
            broker_pb2.ReplicaInfo(topic_id=topic_id, partition=partition, failure=reason, last_epoch=NO_EPOCH)
            for (topic_id, partition), reason in sorted(manager.unopened.items())
        ],
        metadata_version=manager.image.version,
        recovery_seconds=recovery_seconds,
    )
