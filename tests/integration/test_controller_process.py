"""The controller as a process: its data folder, its signals, its exit codes, and kill -9 at any moment."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fencepost_controller.store.sqlite import SCHEMA_VERSION, SqliteStore
from fencepost_proto.protocol.metadata import MetadataImage
from fencepost_proto.protocol.v1 import broker_pb2, controller_pb2, controller_pb2_grpc
from fencepost_testing.waiting import until_sync

WAIT_S = 20.0


class Process:
    """One run of a controller on a data folder."""

    def __init__(self, folder: Path, **settings: int | str) -> None:
        self.data_dir = folder / "controller"
        config = folder / "controller.toml"
        lines = {"data_dir": str(self.data_dir), "listen": "127.0.0.1:0", **settings}
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "fencepost_controller", str(config)], stderr=subprocess.PIPE, text=True
        )

    @property
    def stderr(self) -> IO[str]:
        assert self.popen.stderr is not None
        return self.popen.stderr

    def started(self) -> str:
        """The address it listens at, from its process.json."""
        file = self.data_dir / "process.json"

        def look() -> dict[str, Any] | None:
            if self.popen.poll() is not None:
                pytest.fail(f"the controller ended with {self.popen.returncode}: {self.stderr.read()}")
            return json.loads(file.read_text()) if file.exists() else None

        what = "the controller listens"
        content = until_sync(look, what, WAIT_S, holds=lambda content: content["pid"] == self.popen.pid)
        assert (content["kind"], content["id"]) == ("controller", 0)
        return str(content["address"])

    def ends(self, code: int) -> str:
        """Its standard error."""
        _, text = self.popen.communicate(timeout=WAIT_S)
        assert self.popen.returncode == code, text
        return text


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes: list[Process] = []

    def make(**settings: int | str) -> Process:
        processes.append(Process(tmp_path, **settings))
        return processes[-1]

    yield make
    for process in processes:
        process.popen.kill()
        process.popen.communicate()


def stored(data_dir: Path) -> MetadataImage:
    store = SqliteStore(str(data_dir / "metadata.sqlite"))
    version, entities = store.load()
    store.close()
    return MetadataImage().with_changes(version, {entity.key: entity for entity in entities})


def test_sigterm_and_sigint_end_it_cleanly_and_its_cluster_keeps_its_id(start: Start) -> None:
    process = start()
    process.started()
    process.popen.send_signal(signal.SIGTERM)
    text = process.ends(0)
    assert "stopped clean" in text
    first = stored(process.data_dir)
    assert len(first.cluster_id) == 22
    again = start()
    again.started()
    again.popen.send_signal(signal.SIGINT)
    assert first.cluster_id in again.ends(0)
    second = stored(process.data_dir)
    assert second.version == first.version + 1  # each start begins a lineage, and changes nothing else
    assert replace(second, version=first.version, lineage=first.lineage) == first


def test_kill_9_at_any_moment_loses_nothing_that_was_answered(start: Start) -> None:
    answered = -1
    for round_number in range(3):
        process = start()
        with grpc.insecure_channel(process.started()) as channel:
            stub = controller_pb2_grpc.ControllerStub(channel)
            request = broker_pb2.InitProducerIdRequest(
                name="loader", producer_id=-1, producer_epoch=-1, timeout_ms=1_000
            )
            for _ in range(25):
                answer = stub.InitProducerId(request, wait_for_ready=True, timeout=WAIT_S)
                assert answer.error.code == 0
                assert answer.producer_epoch > answered
                answered = answer.producer_epoch
            waiting = [stub.InitProducerId.future(request) for _ in range(round_number * 10)]
            process.popen.kill()
            for call in waiting:
                try:
                    answered = max(answered, call.result(timeout=WAIT_S).producer_epoch)
                except grpc.RpcError:
                    continue  # it died first
        process.popen.wait(WAIT_S)
        assert stored(process.data_dir).producers["loader"].epoch >= answered


def test_it_answers_for_its_health_and_its_services(start: Start) -> None:
    with grpc.insecure_channel(start().started()) as channel:
        for service in ("", "fencepost.v1.Controller", "fencepost.v1.Admin"):
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # missing in its types
            answer = check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = list(reflection.ServerReflectionInfo(iter([request]), timeout=WAIT_S))  # type: ignore[operator]
        names = {service.name for service in answers[0].list_services_response.service}
        assert {"fencepost.v1.Controller", "fencepost.v1.Admin"} <= names


def test_bad_requests_are_answered_with_their_errors_and_it_lives_on(start: Start) -> None:
    process = start()
    with grpc.insecure_channel(process.started()) as channel:
        controller = controller_pb2_grpc.ControllerStub(channel)
        admin = controller_pb2_grpc.AdminStub(channel)
        init = broker_pb2.InitProducerIdRequest
        errors = [
            controller.AlterPartition(controller_pb2.AlterPartitionRequest(broker_id=9)).error,
            controller.AllocateProducerIds(controller_pb2.AllocateProducerIdsRequest(broker_id=-9)).error,
            controller.InitProducerId(init(producer_id=-1, producer_epoch=-1)).error,
            controller.InitProducerId(init(name="x", producer_id=-7)).error,
            admin.CreateTopic(controller_pb2.CreateTopicRequest(name="a/b")).error,
            admin.CreateTopic(controller_pb2.CreateTopicRequest(name="a", partitions=1, replication_factor=1)).error,
            admin.DeleteTopic(controller_pb2.DeleteTopicRequest(name="nowhere")).error,
            admin.AlterPartitionReassignments(
                controller_pb2.AlterPartitionReassignmentsRequest(
                    topic_name="nowhere", reassignments=[controller_pb2.PartitionReassignment(partition=0)]
                )
            ).error,
            admin.ElectLeader(controller_pb2.ElectLeaderRequest(topic_name="nowhere")).error,
        ]
        assert [error.code for error in errors] == [102, 102, 42, 42, 17, 38, 3, 3, 3]
        assert all(error.message for error in errors)
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/fencepost.v1.Admin/CreateTopic")
        with pytest.raises(grpc.RpcError):
            method(b"\xff\xff no message of ours \xff", timeout=WAIT_S)
        assert admin.DeleteTopic(controller_pb2.DeleteTopicRequest(name="nowhere")).error.code == 3
    assert stored(process.data_dir).version == 1


def test_a_second_controller_on_the_same_folder_is_refused(start: Start) -> None:
    first = start()
    first.started()
    assert "in use by another process" in start().ends(2)
    assert first.popen.poll() is None


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"sesion_timeout_ms": 3}, "sesion_timeout_ms"),
        ({"session_timeout_ms": 1}, "session_timeout_ms = 1"),
        ({"session_timeout_ms": "soon"}, "'soon'"),
        ({"session_timeout_ms": 600, "heartbeat_interval_ms": 400}, "heartbeat_interval_ms = 400"),
        ({"listen": "nowhere"}, "'nowhere'"),
        ({"listen": "203.0.113.7:1"}, "203.0.113.7:1"),
        ({"data_dir": "/proc/nowhere"}, "/proc/nowhere"),
    ],
)
def test_what_it_cannot_run_with_is_one_line_and_exit_code_2(
    start: Start, settings: dict[str, int | str], names: str
) -> None:
    text = start(log_level="ERROR", **settings).ends(2)
    lines = [line for line in text.splitlines() if line.startswith("fencepost_controller: ")]
    assert len(lines) == 1
    assert names in lines[0]
    assert "Traceback" not in text


def test_an_occupied_port_is_named(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert address in start(listen=address).ends(2)


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere.toml")
    done = subprocess.run(
        [sys.executable, "-m", "fencepost_controller", path],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert done.returncode == 2
    assert path in done.stderr


def test_a_store_of_a_newer_version_and_a_damaged_one_are_refused(start: Start) -> None:
    process = start()
    process.started()
    process.popen.send_signal(signal.SIGTERM)
    process.ends(0)
    file = process.data_dir / "metadata.sqlite"
    good = file.read_bytes()
    with sqlite3.connect(file) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    assert "newer version" in start().ends(2)
    for left in process.data_dir.glob("metadata.sqlite-*"):
        left.unlink()
    file.write_bytes(good[:100] + os.urandom(3000) + good[3100:])
    assert "metadata.sqlite" in start().ends(2)
    file.write_bytes(good)
    start().started()


def test_a_store_that_somebody_else_writes_to_stops_it_with_code_70(start: Start) -> None:
    process = start()
    with grpc.insecure_channel(process.started()) as channel:
        with sqlite3.connect(process.data_dir / "metadata.sqlite") as connection:
            connection.execute("UPDATE state SET version = version + 1")
        connection.close()
        stub = controller_pb2_grpc.ControllerStub(channel)
        request = broker_pb2.InitProducerIdRequest(name="loader", producer_id=-1, producer_epoch=-1, timeout_ms=1_000)
        with pytest.raises(grpc.RpcError):
            stub.InitProducerId(request, timeout=WAIT_S)
    assert "is at version 2, not 1" in process.ends(70)
