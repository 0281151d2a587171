"""Ids of clusters and topics."""

from __future__ import annotations

import base64
from random import Random

ID_BYTES = 16


def random_id(random: Random) -> str:
    """As Kafka writes its ids: 16 random bytes, 22 characters, and none that a command line takes for an option."""
    while True:
        text = base64.urlsafe_b64encode(random.randbytes(ID_BYTES)).decode().rstrip("=")
        if not text.startswith("-"):
            return text
