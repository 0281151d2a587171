"""What can be asked of a cluster over HTTP. Each operation is one function of plain values; it raises CommandFailed, with a
message that names what is wrong, for what cannot be done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from fencepost_testing.async_cluster import AsyncLocalCluster
from fencepost_testing.failures import CommandFailed
from fencepost_testing.faults.faults import FAULTS
from fencepost_testing.member import Node

Json = Mapping[str, Any]
Answer = Awaitable[Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One entry of a request's body."""

    type: str  # of JSON
    what: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `run` is given the cluster, the path's parameters and the body."""

    method: str
    path: str  # with {parameters}
    what: str
    run: Callable[[AsyncLocalCluster, Mapping[str, str], Json], Answer]
    body: Mapping[str, Field] | None = None  # None: there is none
    any_body: bool = False  # its fields are checked by `run`
    changes: bool = True


# ---- The whole ----


async def _status(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    return {
        "bootstrap": cluster.bootstrap,
        "kafka_bootstrap": cluster.kafka_bootstrap,
        "directory": str(cluster.directory),
        **asdict(await cluster.status()),
    }


async def _timeline(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    return cluster.faults.timeline()


async def _wait_in_sync(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    await cluster.wait_in_sync(body.get("topic"))
    return {}


async def _heal(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    if cluster.has_faults:
        await asyncio.to_thread(cluster.faults.clear)
    if paused := [node for node in cluster.nodes if cluster.paused(node)]:
        await cluster.resume(*paused)
    await cluster.up()
    await cluster.wait_in_sync()
    return {}


# ---- Topics ----


async def _create_topic(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    return {"name": await cluster.create_topic(body.get("name"), **{k: v for k, v in body.items() if k != "name"})}


async def _topics(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    return sorted(await cluster.topics())


async def _delete_topic(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    await cluster.delete_topic(path["topic"])
    return {}


async def _partitions(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    return [asdict(partition) for partition in await cluster.partitions(path["topic"])]


async def _check_exactly_once(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    checked = await cluster.check_exactly_once(path["topic"], **body)
    return {"records": checked.records, "replicas_checked": checked.replicas_checked}


# ---- Processes ----


async def _node(cluster: AsyncLocalCluster, text: str) -> Node:
    """The process that a target names now."""
    return await cluster.resolve(text)


def _on_process(act: Callable[[AsyncLocalCluster, Node], Answer]) -> Callable[..., Answer]:
    async def run(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
        node = await _node(cluster, path["target"])
        await act(cluster, node)
        return {"node": node}

    return run


# ---- Faults ----


async def _faults(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    return [handle.to_json() for handle in cluster.faults.active()]


async def _set_fault(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    handle = await asyncio.to_thread(cluster.faults.set, path["fault"], body)
    return await asyncio.to_thread(handle.to_json)


async def _fault(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    return (await asyncio.to_thread(cluster.faults.find_any, path["id"])).to_json()


async def _remove_fault(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    handle = await asyncio.to_thread(cluster.faults.find_any, path["id"])
    await asyncio.to_thread(handle.remove)
    return handle.to_json()


async def _clear(cluster: AsyncLocalCluster, path: Mapping[str, str], body: Json) -> Any:
    await asyncio.to_thread(cluster.faults.clear)
    return {}


_TOPIC: Final = {
    "name": Field("string", "None: a unique one is made."),
    "partitions": Field("integer", "How many; 1, if not given."),
    "replication_factor": Field("integer", "Copies of each; 3, or as many as there are brokers, if not given."),
    "min_insync_replicas": Field(
        "integer", "So many have a record before it is acknowledged; all but one, if not given."
    ),
    "config": Field("object", "More settings, by Kafka's names."),
}

OPERATIONS: Final = (
    Operation("GET", "/cluster", "Addresses, processes and partitions.", _status, changes=False),
    Operation("POST", "/cluster/heal", "Remove all faults, start what is down, wait until all is in sync.", _heal),
    Operation(
        "POST",
        "/cluster/wait-in-sync",
        "Wait until every partition has a leader and all its replicas in sync.",
        _wait_in_sync,
        {"topic": Field("string", "Of this topic only.")},
        changes=False,
    ),
    Operation("GET", "/topics", "Their names.", _topics, changes=False),
    Operation("POST", "/topics", "Create a topic; answers its name.", _create_topic, _TOPIC),
    Operation("DELETE", "/topics/{topic}", "Delete a topic.", _delete_topic),
    Operation("GET", "/topics/{topic}", "Its partitions: leader, replicas, in-sync set.", _partitions, changes=False),
    Operation(
        "POST",
        "/topics/{topic}/check-exactly-once",
        "Check every replica's log on disk: no loss, no repeat, no gap. 409, with the records around the first wrong one.",
        _check_exactly_once,
        {
            "sent": Field(
                "array", "Values that were acknowledged, in their order: each is there once, and nothing else."
            ),
            "unacknowledged": Field("array", "Values whose outcome is not known: each may be there once."),
            "read": Field("array", "Values that a consumer was handed."),
            "ordered": Field("boolean", "false: `sent` went to several producers."),
        },
        changes=False,
    ),
    Operation(
        "POST", "/processes/{target}/kill", "SIGKILL; returns once it has ended.", _on_process(lambda c, n: c.kill(n))
    ),
    Operation("POST", "/processes/{target}/pause", "SIGSTOP.", _on_process(lambda c, n: c.pause(n))),
    Operation("POST", "/processes/{target}/resume", "SIGCONT.", _on_process(lambda c, n: c.resume(n))),
    Operation("POST", "/processes/{target}/stop", "A clean shutdown, to its end.", _on_process(lambda c, n: c.stop(n))),
    Operation(
        "POST", "/processes/{target}/start", "Start it; returns once it listens.", _on_process(lambda c, n: c.start(n))
    ),
    Operation(
        "POST",
        "/processes/{target}/restart",
        "Start it again, after a clean shutdown if it runs.",
        _on_process(lambda c, n: c.restart(n)),
    ),
    Operation("GET", "/faults", "Those that are set, and how often each has fired.", _faults, changes=False),
    Operation(
        "POST",
        "/faults/{fault}",
        f"Set a fault: {', '.join(FAULTS)}. The body has what the Python method of that name takes; answers its id.",
        _set_fault,
        {},
        any_body=True,
    ),
    Operation("GET", "/faults/{id}", "How often it has fired; also once it was removed.", _fault, changes=False),
    Operation("DELETE", "/faults/{id}", "Remove a fault.", _remove_fault),
    Operation("DELETE", "/faults", "Remove all.", _clear),
    Operation("GET", "/timeline", "When faults were set, fired and were removed.", _timeline, changes=False),
)

_TYPES: Final[dict[str, type]] = {"string": str, "integer": int, "object": dict, "array": list, "boolean": bool}


def check_body(operation: Operation, body: Json) -> None:
    """Raises CommandFailed for a field that is unknown, missing or of another type."""
    if operation.any_body:
        return
    known = operation.body or {}
    for name, value in body.items():
        if name not in known:
            raise CommandFailed(f"no field {name!r}: there are {', '.join(known) or 'none'}")
        if type(value) is not _TYPES[known[name].type]:
            raise CommandFailed(f"{name}={value!r} is no {known[name].type}")
    for name, field in known.items():
        if field.required and name not in body:
            raise CommandFailed(f"the field {name!r} is missing")
