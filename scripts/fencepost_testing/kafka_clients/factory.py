"""Makes the producers and readers of other projects' clients. A client's library is loaded only where it is asked for."""

from __future__ import annotations

from collections.abc import Callable

from fencepost.history import History
from fencepost_testing import kafka_clients
from fencepost_testing.failures import CommandFailed
from fencepost_testing.kafka_clients import CLIENTS, FENCEPOST
from fencepost_testing.kafka_clients.producer import KafkaProducer
from fencepost_testing.kafka_clients.reader import KafkaReader


def kafka_producer(client: str, bootstrap: str, history: History | None = None) -> KafkaProducer:
    """An idempotent producer, to be used as `async with`. Raises CommandFailed where the client is not installed."""
    return _of(client)[0](bootstrap, history)


def kafka_reader(
    client: str, bootstrap: str, topic: str, group: str, history: History | None = None, *, latest: bool = False
) -> KafkaReader:
    """A member of a group, to be used as `async with`. `latest`: where the group has committed nothing, begin at the end.

    Raises CommandFailed where the client is not installed.
    """
    return _of(client)[1](bootstrap, topic, group, history, latest)


def group_member(
    client: str, bootstrap: str, topic: str, group: str, history: History, *, kip_848: bool = False
) -> KafkaReader:
    """A member that commits only what it is told to, and notes in its history what it is given and what it commits.

    Fencepost's own is one too, of KIP-848; its bootstrap is that for gRPC. Raises CommandFailed as the others do.
    """
    if client == FENCEPOST:
        from fencepost_testing.kafka_clients.own import OwnReader

        return OwnReader(bootstrap, topic, group, history, False, commits=True)
    return _of(client)[1](bootstrap, topic, group, history, False, commits=True, kip_848=kip_848)


def _of(client: str) -> tuple[Callable[..., KafkaProducer], Callable[..., KafkaReader]]:
    try:
        match client:
            case kafka_clients.CONFLUENT_KAFKA:
                from fencepost_testing.kafka_clients import confluent

                return confluent.ConfluentProducer, confluent.ConfluentReader
            case kafka_clients.KAFKA_PYTHON:
                from fencepost_testing.kafka_clients import kafka_python

                return kafka_python.KafkaPythonProducer, kafka_python.KafkaPythonReader
            case kafka_clients.AIOKAFKA:
                from fencepost_testing.kafka_clients import aiokafka_client

                return aiokafka_client.AiokafkaProducer, aiokafka_client.AiokafkaReader
    except ImportError as error:
        raise CommandFailed(f"{client} is not installed ({error}): pip install 'fencepost[kafka-clients]'") from error
    raise CommandFailed(f"client {client!r}: {', '.join(CLIENTS)} are known")
