"""Maps a key to a partition by murmur2, as Kafka's clients do: a key keeps its partition when an application moves here."""

from __future__ import annotations

import struct
from functools import lru_cache

_SEED = 0x9747B28C
_MULTIPLIER = 0x5BD1E995
_SHIFT = 24
_MASK = 0xFFFFFFFF
_POSITIVE = 0x7FFFFFFF


@lru_cache(maxsize=16)
def _words(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}I")


def murmur2(data: bytes) -> int:
    """The 32-bit MurmurHash2 with Kafka's seed, as an unsigned number."""
    length = len(data)
    value = _SEED ^ length
    tail = length & ~3
    for word in _words(tail >> 2).unpack_from(data):
        mixed = (word * _MULTIPLIER) & _MASK
        mixed ^= mixed >> _SHIFT
        value = ((value * _MULTIPLIER) & _MASK) ^ ((mixed * _MULTIPLIER) & _MASK)
    if tail != length:
        value ^= int.from_bytes(data[tail:], "little")
        value = (value * _MULTIPLIER) & _MASK
    value ^= value >> 13
    value = (value * _MULTIPLIER) & _MASK
    return value ^ (value >> 15)


def partition_for(key: bytes, partitions: int) -> int:
    """The partition of this key: 0 to `partitions` - 1."""
    return (murmur2(key) & _POSITIVE) % partitions
