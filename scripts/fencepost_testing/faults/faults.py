"""`Faults`: sets faults on a local cluster, from any process of the same user."""

from __future__ import annotations

import contextlib
import inspect
import signal
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

from fencepost_testing.faults.board import FOLDER, Board
from fencepost_testing.faults.checks import KnownCluster, Target
from fencepost_testing.faults.handle import FaultHandle
from fencepost_testing.faults.rules import (
    DiskAction,
    DiskRule,
    Ended,
    FaultError,
    Limits,
    LinkAction,
    LinkRule,
    Posted,
    ProcessAction,
    ProcessRule,
    RequestAction,
    RequestRule,
    Rule,
    check_ms,
    check_name,
    is_client,
)
from fencepost_testing.member import GONE_TIMEOUT_S, ClusterError, Member, Node, name_of
from fencepost_testing.waiting import until_sync

SIGNAL_TIMEOUT_S: Final = 5.0  # for a process to be stopped or to go on
MAX_BYTES_PER_SECOND: Final = 100_000_000_000
_OFTEN: Final = ("times", "probability", "every_ms")

Side = Target | Iterable[Target]


class HowOften(TypedDict, total=False):
    """How often a fault fires on what it meets; always, if nothing is given."""

    times: int | None  # the next so many, in all processes together
    probability: float
    every_ms: int  # no two are closer


class Conditions(HowOften, total=False):
    """What a request has to be for a fault to meet it."""

    topic: str | None
    partition: int | None
    broker: int | None
    client_id: str | None  # as the client says it
    protocol: str | None  # kafka or fencepost


class Files(HowOften, total=False):
    """Which files a fault of a disk meets: of all brokers, if nothing is given."""

    topic: str | None
    partition: int | None


class Faults:
    """The faults of the cluster in `directory`. Making one changes nothing.

    Each method that sets a fault returns its handle, which is a context manager:

        with faults.drop_answers(api="Produce", topic="orders", times=2) as lost:
            …
        assert lost.fired == 2

    Raises FaultError, which names the value, for what cannot be; then nothing has changed.
    """

    def __init__(self, directory: str | Path, members: Mapping[Node, Member] | None = None) -> None:
        """`members`: those of a cluster of this process, which is to know that the end of one was asked for."""
        self.directory = Path(directory).absolute()  # as its processes have it on their command lines
        self._cluster = KnownCluster(self.directory)
        self._own = members or {}

    @cached_property
    def _board(self) -> Board:
        if not (self.directory / FOLDER / "board").exists():
            self._cluster.members()  # raises where there is no cluster
            raise FaultError(
                f"the cluster in {self.directory} was started without faults: 'fencepost cluster up --faults' or "
                "LocalCluster(faults=True) starts one with them"
            )
        return Board(self.directory / FOLDER)

    # ---- On requests ----

    def drop_answers(self, api: str | None = None, **conditions: Unpack[Conditions]) -> FaultHandle:
        """The request is handled, its answer is lost, and the connection is closed.

        `api`: as in Kafka's protocol (Produce, Fetch, Metadata, …), of both protocols; None: any. Each condition that is
        given must hold.
        """
        return self._on_requests(RequestAction.DROP_ANSWER, api, conditions)

    def drop_requests(self, api: str | None = None, **conditions: Unpack[Conditions]) -> FaultHandle:
        """The connection is closed before the request is handled."""
        return self._on_requests(RequestAction.DROP_REQUEST, api, conditions)

    def delay_requests(
        self, api: str | None = None, *, delay_ms: int, jitter_ms: int = 0, **conditions: Unpack[Conditions]
    ) -> FaultHandle:
        """The request, and what comes behind it on its connection, is handled later: by up to `jitter_ms` more."""
        return self._on_requests(RequestAction.DELAY, api, conditions, delay_ms=delay_ms, jitter_ms=jitter_ms)

    def fail_requests(self, api: str, *, error: str | int, **conditions: Unpack[Conditions]) -> FaultHandle:
        """The request is answered with an error and not handled. `error`: its name or number in Kafka's protocol."""
        from fencepost_testing.faults import fencepost_messages

        if api is None:
            raise FaultError("api=None: name the requests that are to fail, as Produce or Fetch")
        code = error_code(error)
        ours = conditions.get("protocol") != "kafka" and api in fencepost_messages.API_NAMES
        if ours and not fencepost_messages.can_fail(api):
            raise FaultError(f"api={api!r} of Fencepost's protocol has no answer with an error: give protocol='kafka'")
        return self._on_requests(RequestAction.FAIL, api, conditions, error=code)

    def _on_requests(self, action: RequestAction, api: str | None, conditions: Conditions, **how: int) -> FaultHandle:
        given = _known(conditions, Conditions, "condition")
        if action is RequestAction.DELAY:
            _check_delay(**how)
        limits = _limits(given)
        rule = RequestRule(action, api, limits=limits, **given, **how)  # type: ignore[arg-type]
        self._cluster.check_api(rule)
        check_name("client_id", rule.client_id)
        self._cluster.check_broker(rule.broker)
        self._cluster.check_topic(rule.topic, rule.partition)
        return self._post(rule)

    # ---- On links ----
    #
    # A side is a broker's id, "controller" (of several: "controller-1", "controller:active"; "etcd-1", only to controllers),
    # "clients" (all of them, on both ports), "client:<client id>" for some of them,
    # (topic, partition) for a leader, or several of these. No second side: everyone else.

    def cut(self, a: Side, b: Side | None = None, *, one_way: bool = False) -> FaultHandle:
        """What they send to each other is held back until the fault is removed; with `one_way`, what `a` sends to `b`."""
        if not isinstance(one_way, bool):
            raise FaultError(f"one_way={one_way!r}: must be True or False")
        return self._on_links(LinkAction.CUT, a, b, both_ways=not one_way)

    def delay(self, a: Side, b: Side | None = None, *, delay_ms: int, jitter_ms: int = 0) -> FaultHandle:
        """All that they send to each other arrives later, by up to `jitter_ms` more, and in order."""
        _check_delay(delay_ms, jitter_ms)
        return self._on_links(LinkAction.DELAY, a, b, delay_ms=delay_ms, jitter_ms=jitter_ms)

    def limit(self, a: Side, b: Side | None = None, *, bytes_per_second: int) -> FaultHandle:
        """Each connection between them carries so many bytes a second in each direction."""
        if not _is_int(bytes_per_second) or not 1 <= bytes_per_second <= MAX_BYTES_PER_SECOND:
            raise FaultError(f"bytes_per_second={bytes_per_second!r}: from 1 to {MAX_BYTES_PER_SECOND}")
        return self._on_links(LinkAction.LIMIT, a, b, bytes_per_second=bytes_per_second)

    def reset(self, a: Side, b: Side | None = None, *, times: int | None = None) -> FaultHandle:
        """Their open connections break, and so does each that they open until the fault is removed; so many at most."""
        return self._on_links(LinkAction.RESET, a, b, times=times)

    def _on_links(
        self,
        action: LinkAction,
        a: Side,
        b: Side | None,
        *,
        both_ways: bool = True,
        times: int | None = None,
        **how: int,
    ) -> FaultHandle:
        one = self._cluster.parties(a)
        other = () if b is None else self._cluster.parties(b)
        if b is not None and not other:
            raise FaultError(f"b={b!r} names no one: leave it out where everyone else is meant")
        if not one or set(one) & set(other):
            raise FaultError(f"{a!r} and {b!r} are no two sides of a link")
        self._cluster.check_etcd_link(one, other)
        if other and all(map(is_client, (*one, *other))):
            raise FaultError(f"{a!r} and {b!r}: clients have no links with each other")
        limits = _limits({"times": times})
        return self._post(LinkRule(action, one, other, both_ways, limits=limits, **how))

    # ---- On disks ----
    #
    # Of a broker, by its id; of all, by None; or the store of the controller, by "controller".

    def fill_disk(self, broker: int | str | None = None, **files: Unpack[Files]) -> FaultHandle:
        """Whatever would take room on the disk is refused with ENOSPC."""
        return self._on_disks(DiskAction.FULL, broker, files)

    def slow_disk(
        self, broker: int | str | None = None, *, delay_ms: int, jitter_ms: int = 0, **files: Unpack[Files]
    ) -> FaultHandle:
        """Syncs and reads of the disk, and commits of the store, take so much longer."""
        _check_delay(delay_ms, jitter_ms)
        return self._on_disks(DiskAction.SLOW, broker, files, delay_ms=delay_ms, jitter_ms=jitter_ms)

    def fail_syncs(self, broker: int | str | None = None, **files: Unpack[Files]) -> FaultHandle:
        """Syncs of the disk fail with EIO."""
        return self._on_disks(DiskAction.FAIL_SYNC, broker, files)

    def _on_disks(self, action: DiskAction, broker: int | str | None, files: Files, **how: int) -> FaultHandle:
        given = _known(files, Files, "condition")
        limits = _limits(given)
        rule = DiskRule(action, broker, limits=limits, **given, **how)  # type: ignore[arg-type]
        self._cluster.check_disk(broker, rule.topic, rule.partition)
        return self._post(rule)

    # ---- On processes ----

    def kill(self, target: Target) -> FaultHandle:
        """SIGKILL. Returns once the process has ended, and the fault is over then: to remove it changes nothing, and the
        cluster's `start` or `up` brings the process back."""
        handle = self._on_process(ProcessAction.KILL, target, signal.SIGKILL)
        handle.remove()
        return handle

    def pause(self, target: Target) -> FaultHandle:
        """SIGSTOP, until the fault is removed: the process holds everything and does nothing."""
        return self._on_process(ProcessAction.PAUSE, target, signal.SIGSTOP)

    def _on_process(self, action: ProcessAction, target: Target, number: signal.Signals) -> FaultHandle:
        node = self._cluster.node(target)
        member = self._member(node)
        try:
            member.running_process()
            handle = self._post(ProcessRule(action, member.directory.name))
            member.meant_down |= action is ProcessAction.KILL
            member.signal(number)
            if action is ProcessAction.KILL:
                until_sync(lambda: not member.running(), f"{name_of(node)} ends", GONE_TIMEOUT_S, error=ClusterError)
            else:
                until_sync(member.paused, f"{name_of(node)} is paused", SIGNAL_TIMEOUT_S, error=ClusterError)
        except ClusterError as error:
            raise FaultError(str(error)) from error
        self._board.fire(self._posted(handle.id))
        return handle

    def _member(self, node: Node) -> Member:
        """As the cluster's file has it, or this process's own cluster, where both know the same process."""
        found, own = self._cluster.members()[node], self._own.get(node)
        return own if own is not None and own.process == found.process else found

    # ---- All together ----

    def set(self, name: str, arguments: Mapping[str, Any]) -> FaultHandle:
        """The fault of that name ("drop-answers", …), as commands and HTTP ask for it."""
        if name not in FAULTS:
            raise FaultError(f"no fault {name!r}: there are {', '.join(FAULTS)}")
        method: Callable[..., FaultHandle] = getattr(self, FAULTS[name])
        parameters = inspect.signature(method).parameters
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            for argument in arguments:
                if argument not in parameters:
                    raise FaultError(f"no condition {argument!r} of {name}: there are {', '.join(parameters)}")
        for argument, value in arguments.items():
            _check_type(argument, value)
        missing = [
            parameter.name
            for parameter in parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind is not inspect.Parameter.VAR_KEYWORD
            and parameter.name not in arguments
        ]
        if missing:
            raise FaultError(f"{name} needs {', '.join(missing)}")
        return method(**arguments)

    def active(self) -> list[FaultHandle]:
        """Those that are set, oldest first."""
        return [FaultHandle(self._board, posted, self._undo) for posted in self._board.posted()]

    def find(self, fault_id: str) -> FaultHandle:
        """The one with that id. Raises FaultError where it is not set."""
        return FaultHandle(self._board, self._posted(fault_id), self._undo)

    def find_any(self, fault_id: str) -> FaultHandle:
        """The one with that id, also if it was removed. Raises FaultError where there was none."""
        text = self._board.ended(fault_id)
        if text is None:
            return self.find(fault_id)
        return FaultHandle(self._board, Ended(fault_id, text), self._undo)

    def clear(self) -> None:
        """Remove all."""
        posted = self._board.posted()
        self._board.clear()
        for one in posted:
            self._undo(one)

    def timeline(self) -> list[dict[str, Any]]:
        """What was set, fired and removed, oldest first: `at` (seconds since the epoch), `what`, `id`, `text`."""
        return self._board.timeline()

    def _posted(self, fault_id: str) -> Posted:
        for posted in self._board.posted():
            if posted.id == fault_id:
                return posted
        known = ", ".join(posted.id for posted in self._board.posted())
        raise FaultError(f"no fault {fault_id!r} is set: {f'there are {known}' if known else 'there is none'}")

    def _post(self, rule: Rule) -> FaultHandle:
        return FaultHandle(self._board, self._board.post(rule), self._undo)

    def _undo(self, posted: Posted) -> None:
        if not isinstance(posted.rule, ProcessRule) or posted.rule.action is not ProcessAction.PAUSE:
            return
        for member in self._cluster.members().values():
            if member.directory.name == posted.rule.party:
                _resume(member)


# What a fault is called in commands and over HTTP, and the method that sets it.
FAULTS: Final = {
    **{action.value: action.value.replace("-", "_") for action in RequestAction},
    **{action.value: action.value for action in LinkAction},
    **{action.value: action.value.replace("-", "_") for action in DiskAction},
    **{action.value: action.value for action in ProcessAction},
}


_TYPES: Final[Mapping[str, tuple[type, ...]]] = {  # of arguments that come as JSON; None is possible for all
    **dict.fromkeys(("api", "topic", "client_id", "protocol"), (str,)),
    "broker": (int, str),
    **dict.fromkeys(("partition", "times", "every_ms", "delay_ms", "jitter_ms", "bytes_per_second"), (int,)),
    **dict.fromkeys(("a", "b"), (int, str, list)),
    "target": (int, str),
    "error": (int, str),
    "probability": (int, float),
    "one_way": (bool,),
}


def _check_type(name: str, value: object) -> None:
    """Raises FaultError for a value that an argument cannot have."""
    types = _TYPES.get(name)
    is_one = types is None or value is None or type(value) in types
    if is_one and (not isinstance(value, list) or all(type(one) in (int, str) for one in value)):
        return
    words = " or ".join(kind.__name__ for kind in types or ())
    raise FaultError(f"{name}={value!r} is no {words}")


def error_code(error: str | int) -> int:
    """Raises FaultError."""
    from fencepost_proto.protocol.errors import ErrorCode

    try:
        code = ErrorCode[error] if isinstance(error, str) else ErrorCode(error)
    except (KeyError, ValueError):
        raise FaultError(f"error={error!r} is no error of Kafka's protocol that Fencepost has") from None
    if code is ErrorCode.NONE:
        raise FaultError("error=NONE is no error")
    return int(code)


def _known(given: Mapping[str, Any], known: type[Any], what: str) -> dict[str, Any]:
    """A copy. Raises FaultError for a name that is none of a typed dictionary's."""
    names = known.__annotations__
    for name in given:
        if name not in names:
            raise FaultError(f"no {what} {name!r}: there are {', '.join(names)}")
    return dict(given)


def _limits(given: dict[str, Any]) -> Limits:
    """Taken out of what is given. Raises FaultError."""
    limits = Limits(**{name: given.pop(name) for name in _OFTEN if name in given})
    limits.check()
    return limits


def _check_delay(delay_ms: int, jitter_ms: int) -> None:
    check_ms("delay_ms", delay_ms)
    check_ms("jitter_ms", jitter_ms)
    if not delay_ms and not jitter_ms:
        raise FaultError("delay_ms=0 is no delay")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _resume(member: Member) -> None:
    with contextlib.suppress(ClusterError):  # it has ended meanwhile
        member.signal(signal.SIGCONT)
        until_sync(lambda: not member.paused(), f"{name_of(member.node)} goes on", SIGNAL_TIMEOUT_S)
