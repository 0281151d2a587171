"""What one broker counts over all of its partitions since its start, for the metrics: plain numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fencepost_proto.transport.latencies import CallCounts, RequestCounts


@dataclass(slots=True, eq=False)
class BrokerCounts:
    """Of batches, never of records. A replica has `AppendCounts` of its own, which go with it."""

    appended_batches: int = 0  # from clients and coordinators, as a leader
    appended_bytes: int = 0
    repeated_batches: int = 0  # recognised, and not appended
    refused_batches: Counter[str] = field(default_factory=Counter)  # by error: nothing was appended
    unsure_batches: Counter[str] = field(default_factory=Counter)  # by error: appended, and not known to be committed
    followed_bytes: int = 0  # stored as a follower
    leaderships: int = 0  # begun
    followings: int = 0  # begun
    failed_replicas: int = 0  # how often a replica has failed
    calls: CallCounts = field(default_factory=CallCounts)  # of long-lived streams: those of `Answering` are apart
    kafka: RequestCounts = field(default_factory=RequestCounts)
    groups: RequestCounts = field(
        default_factory=RequestCounts
    )  # what the coordinators here were asked, by both protocols
