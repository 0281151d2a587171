"""What can be set of one log."""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_node.log.names import UNKNOWN_PARTITION

NO_LIMIT = -1


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Sizes in bytes, times in milliseconds."""

    topic_id: str = ""
    topic: str = ""  # with the partition: written into a new log's folder, and compared with an old one's
    partition: int = UNKNOWN_PARTITION
    segment_bytes: int = 128 * 1024 * 1024
    retention_ms: int = NO_LIMIT
    retention_bytes: int = NO_LIMIT
    snapshot_interval_bytes: int = 64 * 1024 * 1024  # bounds what recovery reads
    index_interval_bytes: int = 4096  # of batches for an entry
