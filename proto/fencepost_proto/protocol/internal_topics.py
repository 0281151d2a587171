"""Topics whose partitions' leaders coordinate: ordinary topics, whose names make them internal.

Clients may read and describe them. Only coordinators write to them.
"""

from __future__ import annotations

import struct
from typing import Final

OFFSETS_TOPIC: Final = "__consumer_offsets"  # groups and their offsets

INTERNAL_TOPICS: Final = frozenset({OFFSETS_TOPIC})

_UNIT = struct.Struct(">H")


def group_hash(group_id: str) -> int:
    """As Java's String.hashCode, without its sign: a number for each group id that is the same everywhere.

    The coordinator of a group is the leader of partition `group_hash(group id) % n` of OFFSETS_TOPIC, as in Kafka.
    """
    value = 0
    for (unit,) in _UNIT.iter_unpack(group_id.encode("utf-16-be")):
        value = (31 * value + unit) & 0xFFFFFFFF
    signed = value - 2**32 if value >= 2**31 else value
    return 0 if signed == -(2**31) else abs(signed)
