"""Who takes part in a chaos run: the clients, by whose they are."""

from __future__ import annotations

from dataclasses import replace

from fencepost_testing.chaos.fleet import Role
from fencepost_testing.kafka_clients import AIOKAFKA, CONFLUENT_KAFKA, FENCEPOST, KAFKA_CLIENTS, KAFKA_PYTHON, MIXED

CLASSIC_GROUP, KIP_848_GROUP = "classic", "kip-848"

_READER = Role("reader", "consumer")
_OWN = (
    # Long timeouts: no outcome is ever unknown unless the process dies. Named, so that it can resume and be taken over.
    Role("loader", "producer", 0.3, keys=40, settings={"name": "chaos-loader", "linger_ms": 5}),
    Role(
        "mover",
        "producer",
        0.2,
        keys=40,
        settings={"name": "chaos-mover", "compression": "zstd"},
        drop_acks=0.02,
    ),
    # Hasty: gives records up while brokers are away, so that outcomes are unknown and epochs rise.
    Role("hasty", "producer", 0.3, keys=40, settings={"delivery_timeout_ms": 2_500, "request_timeout_ms": 800}),
    Role("steady", "producer", 0.2, keys=0, settings={"compression": "lz4"}, drop_acks=0.02),
    _READER,
    Role("rewinder", "consumer", rewinds=True),
)


def roles(rate: float, client: str = FENCEPOST) -> list[Role]:
    """The clients of a run; producers share the rate."""
    cast = _OWN if client == FENCEPOST else (*_producers(client), _READER, *_members(client))
    return [replace(role, rate=role.rate * rate, settings=dict(role.settings)) for role in cast]


def groups_of(client: str) -> list[str]:
    return sorted({role.group for role in roles(0, client) if role.group})


def _producers(client: str) -> list[Role]:
    whose = (CONFLUENT_KAFKA, AIOKAFKA, KAFKA_PYTHON) if client == MIXED else (client,) * 3
    names = ("loader", "mover", "steady")
    found = [
        Role(name, "producer", 0.25, keys=40 if name != "steady" else 0, client=one)
        for name, one in zip(names, whose, strict=True)
    ]
    return [*found, Role("own", "producer", 0.25, keys=40)]


def _members(client: str) -> list[Role]:
    """Three of the classic protocol, and where a client has it, some of KIP-848, of which one is Fencepost's own."""
    whose = KAFKA_CLIENTS if client == MIXED else (client,) * 3
    classic = [
        Role(f"member-{number}", "member", client=one, group=CLASSIC_GROUP) for number, one in enumerate(whose, 1)
    ]
    if client not in (CONFLUENT_KAFKA, MIXED):
        return classic
    return [
        *classic,
        Role("member-4", "member", client=CONFLUENT_KAFKA, group=KIP_848_GROUP, kip_848=True),
        Role("member-5", "member", client=FENCEPOST, group=KIP_848_GROUP, kip_848=True),
    ]
