"""Topics whose partitions' leaders coordinate: ordinary topics, whose names make them internal.

Clients may read and describe them. Only coordinators write to them.
"""

from __future__ import annotations

from typing import Final

OFFSETS_TOPIC: Final = "__consumer_offsets"  # groups and their offsets

INTERNAL_TOPICS: Final = frozenset({OFFSETS_TOPIC})
