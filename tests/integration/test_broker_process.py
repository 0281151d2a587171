"""A broker as a process: what it refuses to start with, in one line and with exit code 2, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fencepost_testing.waiting import until_sync

START_S = 20.0
NO_CONTROLLER = "127.0.0.1:1"  # brokers wait for it


def config_file(folder: Path, **settings: object) -> Path:
    values = {"broker_id": 1, "data_dir": str(folder / "data"), "controller": NO_CONTROLLER, **settings}
    path = folder / f"broker-{len(list(folder.glob('*.toml')))}.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return path


def run_broker(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """To its end."""
    command = [sys.executable, "-m", "fencepost_node", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)


class Processes:
    """Brokers that are killed at the end of the test."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []

    def start(self, config: Path, data_dir: Path) -> tuple[subprocess.Popen[str], str]:
        """The process and its address, once it listens."""
        log = config.with_suffix(".log").open("w")
        process = subprocess.Popen([sys.executable, "-m", "fencepost_node", str(config)], stderr=log, text=True)
        log.close()
        self._running.append(process)

        def look() -> dict[str, Any]:
            said = _read_json(data_dir / "process.json")
            assert process.poll() is None, config.with_suffix(".log").read_text()
            return said

        def late(told: str) -> AssertionError:
            return AssertionError(f"{told}; its log:\n{config.with_suffix('.log').read_text()}")

        listens = "the broker listens"
        said = until_sync(look, listens, START_S, holds=lambda said: said.get("pid") == process.pid, error=late)
        return process, str(said["address"])

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


def _read_json(path: Path) -> dict[str, object]:
    try:
        said = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    assert isinstance(said, dict)
    return said


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.close()


def test_help_shows_an_example() -> None:
    answer = run_broker("--help")
    assert answer.returncode == 0
    assert "broker_id = 1" in answer.stdout


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "key 'broker_id' is missing"),
        ('broker_id = "one"\ndata_dir = "d"\ncontroller = "c:1"\n', "broker_id = 'one': expected int"),
        ('broker_id = 1\ndata_dir = "d"\ncontroller = "c:1"\nretries = 5\n', "unknown key 'retries' (value 5)"),
        ("this is not toml", "is not TOML"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_one_line_and_exit_code_2(
    tmp_path: Path, content: str, complaint: str
) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(content)
    answer = run_broker(path)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert complaint in answer.stderr
    assert str(path) in answer.stderr


def test_a_configuration_that_cannot_be_read_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    answer = run_broker(tmp_path / "nowhere.toml")
    assert answer.returncode == 2
    assert answer.stderr == (
        f"fencepost_node: cannot read the configuration '{tmp_path}/nowhere.toml': No such file or directory\n"
    )


def test_an_occupied_port_is_named_and_exit_code_2(tmp_path: Path) -> None:
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        address = f"127.0.0.1:{occupied.getsockname()[1]}"
        answer = run_broker(config_file(tmp_path, listen=address))
    assert answer.returncode == 2
    assert f"cannot listen on {address}" in answer.stderr.splitlines()[-1]
    assert not (tmp_path / "data" / "process.json").exists()


def test_a_data_folder_that_cannot_be_made_is_named_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = run_broker(config_file(tmp_path, data_dir=str(tmp_path / "file" / "data")))
    assert answer.returncode == 2
    assert str(tmp_path / "file") in answer.stderr.splitlines()[-1]


def test_a_data_folder_in_use_and_one_of_another_broker_are_named_and_exit_code_2(
    tmp_path: Path, processes: Processes
) -> None:
    process, _ = processes.start(config_file(tmp_path), tmp_path / "data")
    answer = run_broker(config_file(tmp_path))
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1] == (
        f"fencepost_node: data folder '{tmp_path}/data' is in use by another process"
    )
    assert process.poll() is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "meta.properties").write_text("broker.id=4\ncluster.id=c\nboot.id=b\n")
    answer = run_broker(config_file(tmp_path, data_dir=str(tmp_path / "other")))
    assert answer.returncode == 2
    assert "belongs to broker 4; the configuration says broker_id = 1" in answer.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_broker_without_a_controller_starts_waits_and_stops_and_marks_nothing_that_was_reported_to_no_one(
    tmp_path: Path, processes: Processes, number: signal.Signals
) -> None:
    process, address = processes.start(config_file(tmp_path), tmp_path / "data")
    said = _read_json(tmp_path / "data" / "process.json")
    assert said == {"pid": process.pid, "address": address, "kind": "broker", "id": 1}
    process.send_signal(number)
    assert process.wait(START_S) == 0
    assert not (tmp_path / "data" / "clean-shutdown").exists()  # a folder that is new may have lost everything


def test_a_kill_leaves_no_marker_and_the_folder_free(tmp_path: Path, processes: Processes) -> None:
    process, _ = processes.start(config_file(tmp_path), tmp_path / "data")
    os.kill(process.pid, signal.SIGKILL)
    process.wait(START_S)
    assert not (tmp_path / "data" / "clean-shutdown").exists()
    processes.start(config_file(tmp_path), tmp_path / "data")
