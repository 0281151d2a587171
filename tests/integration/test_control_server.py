"""`fencepost serve-tests`: a cluster by HTTP and JSON, for whoever has its token and for no page of another site."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fencepost import Producer
from fencepost_testing.faults.faults import FAULTS
from tests.integration.control_client import TIMEOUT_S, Served

COMMAND = (sys.executable, "-m", "fencepost_cli", "serve-tests")


@contextmanager
def serving(*options: str) -> Iterator[Served]:
    process = subprocess.Popen([*COMMAND, "--json", *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Served(json.loads(process.stdout.readline()))
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 143


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving("--port", "0", "--brokers", "2") as found:
        yield found


def send(served: Served, topic: str, numbers: range) -> None:
    async def scenario() -> None:
        async with Producer(served.bootstrap, linger_ms=0) as producer:
            for number in numbers:
                await producer.send_and_wait(topic, b"%d" % number, partition=0)

    asyncio.run(scenario())


def test_a_leader_is_killed_and_answers_are_lost_by_http(served: Served) -> None:
    topic = served.do("POST", "/topics", {"partitions": 1, "min_insync_replicas": 1})["name"]
    fault = served.do("POST", "/faults/drop-answers", {"api": "Produce", "topic": topic, "times": 2})
    send(served, topic, range(5))
    assert served.do("GET", f"/faults/{fault['id']}")["fired"] == 2
    assert [one["id"] for one in served.do("GET", "/faults")] == [fault["id"]]
    assert served.do("DELETE", f"/faults/{fault['id']}") == {**fault, "fired": 2, "set": False}
    (before,) = served.do("GET", f"/topics/{topic}")
    assert served.do("POST", f"/processes/leader:{topic}-0/kill") == {"node": before["leader"]}
    send(served, topic, range(5, 10))
    (after,) = served.do("GET", f"/topics/{topic}")
    assert after["leader"] not in (before["leader"], -1)
    sent = [str(number) for number in range(10)]
    checked = served.do("POST", f"/topics/{topic}/check-exactly-once", {"sent": sent})
    assert (checked["records"], checked["replicas_checked"] > 0) == (10, True)
    status, answer = served.ask("POST", f"/topics/{topic}/check-exactly-once", {"sent": [*sent, "never sent"]})
    assert (status, "never sent" in answer["error"]) == (409, True), answer
    served.do("POST", f"/processes/{before['leader']}/start")
    served.do("POST", "/cluster/wait-in-sync", {"topic": topic})
    assert [line["what"] for line in served.do("GET", "/timeline")] == ["posted", "fired", "fired", "removed"]
    assert topic in served.do("GET", "/topics")
    served.do("DELETE", f"/topics/{topic}")
    assert topic not in served.do("GET", "/topics")


def test_processes_are_paused_and_all_is_healed(served: Served) -> None:
    served.do("POST", "/faults/pause", {"target": 2})
    served.do("POST", "/processes/controller/pause")
    states = {process["name"]: process["state"] for process in served.do("GET", "/cluster")["processes"]}
    assert states["controller"] == "paused"
    served.do("POST", "/processes/controller/resume")
    served.do("POST", "/faults/kill", {"target": 1})
    states = {process["name"]: process["state"] for process in served.do("GET", "/cluster")["processes"]}
    assert states["broker 1"] == "down"
    served.do("POST", "/cluster/heal")
    states = {process["name"]: process["state"] for process in served.do("GET", "/cluster")["processes"]}
    assert set(states.values()) == {"running"}


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"Authorization": None}, 401, "no token"),
        ({"Authorization": "Bearer wrong-token"}, 401, "the token wron… is not this server's"),
        ({"Authorization": "Basic abc"}, 401, "is not this server's"),
        ({"Host": "evil.example:80"}, 421, "Host 'evil.example:80' is not this server"),
        ({"Origin": "http://evil.example"}, 403, "Origin 'http://evil.example'"),
        ({"Origin": "null"}, 403, "Origin 'null'"),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403, "Sec-Fetch-Site 'cross-site'"),
    ],
)
def test_who_may_not_ask_is_refused(served: Served, headers: dict[str, str | None], status: int, message: str) -> None:
    for method, path in (("GET", "/topics"), ("DELETE", "/faults"), ("POST", "/processes/1/kill")):
        answered, answer = served.ask(method, path, headers=headers)
        assert answered == status
        assert message in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/faults/melt-disk", {}, 400, "no fault 'melt-disk': there are"),
        ("POST", "/faults/cut", {"a": 9}, 400, "no broker 9 in this cluster: it has 1, 2"),
        ("POST", "/faults/drop-answers", {"topic": "no-such"}, 400, "no topic 'no-such'"),
        ("POST", "/faults/drop-answers", {"times": "two"}, 400, "times='two' is no int"),
        ("POST", "/faults/drop-answers", {"topic": ["a"]}, 400, "topic=['a'] is no str"),
        ("POST", "/faults/cut", {"a": [{}]}, 400, "a=[{}] is no int or str or list"),
        ("POST", "/faults/drop-answers", {"time": 2}, 400, "no condition 'time'"),
        ("GET", "/faults/cut-77", None, 400, "no fault 'cut-77'"),
        ("POST", "/processes/7/kill", None, 400, "no broker 7 in this cluster"),
        ("POST", "/processes/leader/kill", None, 400, "target 'leader' is not"),
        ("POST", "/processes/leader:none-0/kill", None, 400, "none"),
        ("POST", "/processes/leader:none/kill", None, 400, "target 'leader:none' names no partition"),
        ("POST", "/topics", {"partitions": 0}, 400, "0"),
        ("POST", "/topics", {"partitions": -1}, 400, "partitions=-1: must be a whole number from 1 to"),
        ("POST", "/topics", {"replication_factor": 0}, 400, "replication_factor=0: must be a whole number from 1 to"),
        (
            "POST",
            "/faults/fail-requests",
            {"api": None, "error": 3},
            400,
            "api=None: name the requests that are to fail",
        ),
        ("POST", "/faults/cut", {"a": 1, "b": []}, 400, "b=[] names no one"),
        ("POST", "/topics", {"partitions": "many"}, 400, "partitions='many' is no integer"),
        ("POST", "/topics", {"replicas": 1}, 400, "no field 'replicas': there are name, partitions"),
        ("POST", "/topics", {"name": "a b"}, 400, "a b"),
        ("DELETE", "/topics/no-such", None, 400, "no-such"),
        ("GET", "/topics/no-such", None, 400, "no-such"),
        ("POST", "/topics", b"{", 400, "the body is no JSON"),
        ("POST", "/topics", b"[1]", 400, "a JSON object, not '[1]'"),
        ("POST", "/topics", b" " * 70_000, 413, "larger than 65536 bytes"),
        ("GET", "/clusters", None, 404, "no GET /clusters"),
        ("OPTIONS", "/topics", None, 404, "no OPTIONS /topics"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(  # noqa: PLR0917  # the server, and a case
    served: Served, method: str, path: str, body: object, status: int, message: str
) -> None:
    answered, answer = served.ask(method, path, body)
    assert (answered, message in answer["error"]) == (status, True), answer
    assert served.do("GET", "/faults") == []


def test_a_body_of_another_type_is_refused(served: Served) -> None:
    status, answer = served.ask("POST", "/topics", {"name": "x"}, headers={"Content-Type": "text/plain"})
    assert (status, "application/json" in answer["error"]) == (415, True)


def test_the_description_has_every_operation_and_needs_no_token(served: Served) -> None:
    status, document = served.ask("GET", "/openapi.json", headers={"Authorization": None})
    assert (status, document["openapi"]) == (200, "3.1.0")
    assert "post" in document["paths"]["/processes/{target}/kill"]
    assert all(fault in document["paths"]["/faults/{fault}"]["post"]["summary"] for fault in FAULTS)
    status, page = served.ask("GET", "/", headers={"Authorization": None})
    assert (status, "/processes/{target}/kill" in page) == (200, True)
    assert served.ask("GET", "/", headers={"Host": "evil.example"})[0] == 421


def test_a_port_that_is_taken_and_a_weak_token_are_refused(served: Served) -> None:
    port = served.host.rpartition(":")[2]
    for options, message in (
        (("--port", port), f"another port than {port}"),
        (("--port", "0", "--token", "x"), "a token of 1"),
    ):
        ended = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert ended.returncode == 1
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_command_runs_beside_the_cluster_and_ends_it() -> None:
    program = (
        "import os, sys; print(os.environ['FENCEPOST_TEST_URL'], len(os.environ['FENCEPOST_TEST_TOKEN'])); sys.exit(3)"
    )
    command = [*COMMAND, "--port", "0", "--brokers", "1", "--", sys.executable, "-c", program]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=dict(os.environ)
    )
    assert (ended.returncode, ended.stderr) == (3, "")
    url, length = ended.stdout.split()
    assert url.startswith("http://127.0.0.1:")
    assert int(length) >= 32
