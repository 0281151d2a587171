"""Bounds on what one group, and one coordinator, may hold. Each is checked before work is done for who asks."""

from __future__ import annotations

from typing import Final

MAX_ID_CHARACTERS: Final = 255  # of a group id, a member id, an instance id, a client id
MAX_NAME_CHARACTERS: Final = 64  # of a protocol type, a protocol, an assignor
MAX_GROUPS: Final = 10_000  # of one coordinator, that is of one partition of the internal topic
MAX_MEMBERS: Final = 1_000  # of one group, with those that have an id and have not joined with it yet
MAX_PROTOCOLS: Final = 16  # that one member supports
MAX_GROUP_BYTES: Final = (
    1024 * 1024
)  # of the members' subscriptions for all protocols; and as much of their assignments
RECORDED_DEPARTURE_BYTES: Final = 64 * 1024  # of subscriptions; each departure writes those of all members again
MAX_OFFSETS_OF_A_GROUP: Final = 10_000  # a cluster has as many partitions
MAX_PARTITIONS_OF_A_QUESTION: Final = (
    20_000  # whose offsets are committed, fetched or deleted: twice those of a cluster
)
MAX_OFFSETS_FORGOTTEN_AT_ONCE: Final = 500  # by one decision: some milliseconds of the event loop
MAX_OFFSET_METADATA_CHARACTERS: Final = 4_096  # of one committed offset, as Kafka's `offset.metadata.max.bytes`
MAX_SUBSCRIBED_TOPICS: Final = 2_000  # of one member; a cluster has as many topics

MIN_SESSION_TIMEOUT_MS: Final = 100
MAX_SESSION_TIMEOUT_MS: Final = 30 * 60 * 1000
MAX_REBALANCE_TIMEOUT_MS: Final = 60 * 60 * 1000  # a longer one counts as so long
