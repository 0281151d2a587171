"""`Faults`: sets faults on a local cluster, from any process of the same user."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

from fencepost_proto.protocol.errors import ErrorCode
from fencepost_testing.cluster_file import ClusterFile
from fencepost_testing.faults.board import FOLDER, Board
from fencepost_testing.faults.handle import FaultHandle
from fencepost_testing.faults.rules import (
    PROTOCOLS,
    FaultError,
    Limits,
    RequestAction,
    RequestRule,
    check_ms,
    check_name,
)
from fencepost_testing.member import CONTROLLER, ClusterError, Member, Node
from fencepost_testing.waiting import NotInTime, until_sync

TOPIC_TIMEOUT_S: Final = 2.0  # for a topic that was just created to be on a broker's disk


class Conditions(TypedDict, total=False):
    """What a request has to be for a fault to meet it, and how often the fault then fires; see `Faults`."""

    topic: str | None
    partition: int | None
    broker: int | None
    client_id: str | None
    protocol: str | None
    times: int | None
    probability: float
    every_ms: int


class Faults:
    """The faults of the cluster in `directory`. Making one changes nothing.

    Each method that sets a fault returns its handle, which is a context manager:

        with faults.drop_answers(api="Produce", topic="orders", times=2) as lost:
            …
        assert lost.fired == 2

    Conditions, of which each that is given must hold: `api` (as in Kafka's protocol: Produce, Fetch, Metadata, …), `topic`,
    `partition`, `broker`, `client_id` (of Kafka's clients), `protocol` ("kafka" or "fencepost"). How often: `times` (the
    next so many, over all brokers), `probability`, `every_ms` (no two closer than that).

    Raises FaultError, which names the value, for what cannot be; then nothing has changed.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    @cached_property
    def _board(self) -> Board:
        if not (self.directory / FOLDER / "board").exists():
            self._members()  # raises where there is no cluster
            raise FaultError(f"the cluster in {self.directory} was started without faults")
        return Board(self.directory / FOLDER)

    # ---- On requests ----

    def drop_answers(self, api: str | None = None, **conditions: Unpack[Conditions]) -> FaultHandle:
        """The request is handled, its answer is lost, and the connection is closed."""
        return self._on_requests(RequestAction.DROP_ANSWER, api, conditions)

    def drop_requests(self, api: str | None = None, **conditions: Unpack[Conditions]) -> FaultHandle:
        """The connection is closed before the request is handled."""
        return self._on_requests(RequestAction.DROP_REQUEST, api, conditions)

    def delay_requests(
        self, api: str | None = None, *, delay_ms: int, jitter_ms: int = 0, **conditions: Unpack[Conditions]
    ) -> FaultHandle:
        """The request, and what comes behind it on its connection, is handled later: by up to `jitter_ms` more."""
        check_ms("delay_ms", delay_ms)
        check_ms("jitter_ms", jitter_ms)
        if not delay_ms and not jitter_ms:
            raise FaultError("delay_ms=0 is no delay")
        return self._on_requests(RequestAction.DELAY, api, conditions, delay_ms=delay_ms, jitter_ms=jitter_ms)

    def fail_requests(self, api: str, *, error: str | int, **conditions: Unpack[Conditions]) -> FaultHandle:
        """The request is answered with an error and not handled. `error`: its name or number in Kafka's protocol."""
        from fencepost_testing.faults import fencepost_messages

        code = error_code(error)
        ours = conditions.get("protocol") != "kafka" and api in fencepost_messages.API_NAMES
        if ours and not fencepost_messages.can_fail(api):
            raise FaultError(f"api={api!r} of Fencepost's protocol has no answer with an error: give protocol='kafka'")
        return self._on_requests(RequestAction.FAIL, api, conditions, error=code)

    def _on_requests(self, action: RequestAction, api: str | None, conditions: Conditions, **how: int) -> FaultHandle:
        given: dict[str, Any] = {**conditions, **how}
        limits = Limits(**{name: given.pop(name) for name in ("times", "probability", "every_ms") if name in given})
        unknown = sorted(given.keys() - {"topic", "partition", "broker", "client_id", "protocol"} - how.keys())
        if unknown:
            raise FaultError(
                f"no condition {unknown[0]!r}: there are api, topic, partition, broker, client_id, protocol, times, "
                "probability and every_ms"
            )
        rule = RequestRule(action, api, limits=limits, **given)
        limits.check()
        self._check_api(rule)
        check_name("client_id", rule.client_id)
        self._check_broker(rule.broker)
        self._check_topic(rule.topic, rule.partition)
        return FaultHandle(self._board, self._board.post(rule))

    # ---- All together ----

    def active(self) -> list[FaultHandle]:
        """Those that are set, oldest first."""
        return [FaultHandle(self._board, posted) for posted in self._board.posted()]

    def find(self, fault_id: str) -> FaultHandle:
        """The one with that id. Raises FaultError where it is not set."""
        for handle in self.active():
            if handle.id == fault_id:
                return handle
        known = ", ".join(handle.id for handle in self.active()) or "none is set"
        raise FaultError(f"no fault {fault_id!r}: {known}")

    def clear(self) -> None:
        """Remove all."""
        self._board.clear()

    def timeline(self) -> list[dict[str, Any]]:
        """What was set, fired and removed, oldest first: `at` (seconds since the epoch), `what`, `id`, `text`."""
        return self._board.timeline()

    # ---- What cannot be ----

    def _members(self) -> dict[Node, Member]:
        try:
            return ClusterFile.read(self.directory).members
        except ClusterError as error:
            raise FaultError(str(error)) from error

    def _check_api(self, rule: RequestRule) -> None:
        from fencepost_testing.faults import fencepost_messages, kafka_messages

        if rule.protocol not in (None, *PROTOCOLS):
            raise FaultError(f"protocol={rule.protocol!r}: {' or '.join(PROTOCOLS)}")
        known: set[str] = set()
        if rule.protocol != "kafka":
            known |= fencepost_messages.API_NAMES
        if rule.protocol != "fencepost":
            known |= set(kafka_messages.API_KEYS)
        if rule.api is not None and rule.api not in known:
            raise FaultError(f"no api {rule.api!r}: there are {', '.join(sorted(known))}")

    def _check_broker(self, broker: int | None) -> None:
        if broker is None:
            return
        brokers = [node for node in self._members() if node != CONTROLLER]
        if broker not in brokers or isinstance(broker, bool):
            raise FaultError(f"no broker {broker!r} in this cluster: it has {', '.join(map(str, brokers))}")

    def _check_topic(self, topic: str | None, partition: int | None) -> None:
        """By the brokers' folders, which have one for each replica."""
        if partition is not None and (not isinstance(partition, int) or isinstance(partition, bool) or partition < 0):
            raise FaultError(f"partition={partition!r} is not the number of a partition")
        if topic is None:
            return
        check_name("topic", topic)

        def is_there() -> bool:
            partitions = self._topics().get(topic, set())
            return bool(partitions) and partition in (None, *partitions)

        try:
            until_sync(is_there, f"topic {topic!r}", TOPIC_TIMEOUT_S)
        except NotInTime:
            topics = self._topics()
            if topic in topics:
                last = max(topics[topic])
                raise FaultError(f"no partition {partition} of topic {topic!r}: it has 0 to {last}") from None
            raise FaultError(
                f"no topic {topic!r} in this cluster: it has {', '.join(sorted(topics)) or 'none'}"
            ) from None

    def _topics(self) -> dict[str, set[int]]:
        topics: dict[str, set[int]] = {}
        for folder in self.directory.glob("broker-*/*-*"):
            name, _, number = folder.name.rpartition("-")
            if number.isdecimal() and folder.is_dir():
                topics.setdefault(name, set()).add(int(number))
        return topics


def error_code(error: str | int) -> int:
    """Raises FaultError."""
    try:
        code = ErrorCode[error] if isinstance(error, str) else ErrorCode(error)
    except (KeyError, ValueError):
        raise FaultError(f"error={error!r} is no error of Kafka's protocol that Fencepost has") from None
    if code is ErrorCode.NONE:
        raise FaultError("error=NONE is no error")
    return int(code)
