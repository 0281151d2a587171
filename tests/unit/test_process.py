"""A process's life: what it is started with, what it announces, and how it ends, exit codes and all."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from fencepost_proto.protocol.errors import InvariantBroken
from fencepost_proto.runtime import process as process_module
from fencepost_proto.runtime.failure import Failure
from fencepost_proto.runtime.process import Ending, Event, LineFormatter, LineHandler, live
from fencepost_testing.waiting import until_sync
from tests.asynchronous import asynchronous
from tests.unit import process_of_nothing
from tests.unit.process_of_nothing import CannotBe, Nothing, NothingConfig, program

WAIT_S = 20.0


class Process:
    """One run of the program."""

    def __init__(self, folder: Path, **settings: str | int | bool) -> None:
        self.data_dir = folder / "deep" / "data"
        config = folder / "nothing.toml"
        values = {"data_dir": str(self.data_dir), **settings}
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        self.popen = subprocess.Popen(
            [sys.executable, process_of_nothing.__file__, str(config)], stderr=subprocess.PIPE, text=True
        )

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            if condition():
                return True
            assert self.popen.poll() is None, f"it ended with {self.popen.returncode} before: {what}"
            return False

        until_sync(holds, what, WAIT_S)

    def started(self) -> dict[str, object]:
        """What it announces."""
        file = self.data_dir / "process.json"
        self.until(file.exists, "process.json")
        said = json.loads(file.read_text())
        assert isinstance(said, dict)
        return said

    def ends(self, code: int) -> str:
        """Its standard error."""
        _, text = self.popen.communicate(timeout=WAIT_S)
        assert self.popen.returncode == code, text
        return text

    def told(self) -> list[str]:
        file = self.data_dir / "told"
        return file.read_text().splitlines() if file.exists() else []


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes: list[Process] = []

    def make(**settings: str | int | bool) -> Process:
        processes.append(Process(tmp_path, **settings))
        return processes[-1]

    yield make
    for process in processes:
        process.popen.kill()
        process.popen.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_makes_its_folder_announces_itself_and_is_stopped_cleanly_by_a_signal(
    start: Start, number: signal.Signals
) -> None:
    process = start(number=7)
    assert process.started() == {"pid": process.popen.pid, "address": "nowhere:1", "kind": "nothing", "id": 7}
    process.popen.send_signal(number)
    assert process.ends(0) == ""
    assert process.told() == ["start", "stop clean"]


def test_garbage_is_collected_once_it_has_started(start: Start) -> None:
    process = start()
    process.started()
    process.popen.send_signal(signal.SIGTERM)
    process.ends(0)
    assert (process.data_dir / "collections").read_text().split() == ["False", "True"], "at its start, and at its end"


def test_a_signal_during_its_start_ends_it_without_a_clean_stop(start: Start) -> None:
    process = start(hangs_in_start=True)
    process.until(lambda: process.told() == ["start"], "its start")
    process.popen.send_signal(signal.SIGTERM)
    process.ends(0)
    assert process.told() == ["start", "stop"]
    assert not (process.data_dir / "process.json").exists()


@pytest.mark.parametrize("error", ["cannot be", "disk"])
@pytest.mark.parametrize(("during", "told"), [("make", []), ("start", ["start", "stop"])])
def test_what_it_cannot_start_with_is_one_line_and_exit_code_2(
    start: Start, error: str, during: str, told: list[str]
) -> None:
    process = start(error=error, during=during)
    assert process.ends(2) == f"nothing: {process_of_nothing.ERRORS[error]}\n"
    assert process.told() == told
    assert not (process.data_dir / "process.json").exists()


def test_a_folder_without_room_for_the_announcement_is_one_that_it_cannot_start_with(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "deep" / "data" / "process.json.tmp").mkdir(parents=True)
    process = start()
    assert "process.json.tmp" in process.ends(2)
    assert process.told() == ["start", "stop"]


@pytest.mark.parametrize(
    ("error", "during", "told"),
    [
        ("fault", "make", []),
        ("fault", "start", ["start"]),
        ("fault", "run", ["start"]),
        ("disk", "run", ["start"]),
        ("cannot be", "run", ["start"]),
    ],
)
def test_after_a_fault_nothing_more_is_done_and_the_exit_code_is_70(
    start: Start, error: str, during: str, told: list[str]
) -> None:
    process = start(error=error, during=during)
    text = process.ends(70)
    assert f"stopping at once: {process_of_nothing.ERRORS[error]}" in text
    assert "nothing=1" in text
    assert "Traceback" in text
    assert process.told() == told


@pytest.mark.parametrize("error", ["fault", "disk"])
def test_a_fault_in_a_clean_stop_is_exit_code_70(start: Start, error: str) -> None:
    process = start(error=error, during="stop")
    process.started()
    process.popen.send_signal(signal.SIGTERM)
    assert f"stopping at once: {process_of_nothing.ERRORS[error]}" in process.ends(70)
    assert process.told() == ["start", "stop clean"]


def test_a_folder_in_use_is_refused_and_is_free_once_its_process_is_dead(start: Start) -> None:
    first = start()
    first.started()
    second = start()
    assert second.ends(2) == f"nothing: data folder '{first.data_dir}' is in use by another process\n"
    assert first.told() == ["start"]
    first.popen.kill()
    first.popen.wait(WAIT_S)
    (first.data_dir / "process.json").unlink()
    start().started()


def test_what_has_survived_a_long_collection_is_not_looked_at_again() -> None:
    callbacks, threshold = gc.callbacks[:], gc.get_threshold()
    again: list[Callable[[], object]] = []
    gc.disable()  # no collection but those that are asked for here
    try:
        with patch.object(process_module, "LONG_COLLECTION_S", 0.0):
            process_module.freeze_after_long_collections(again.append)
            kept = [[n] for n in range(1_000)]
            frozen = gc.get_freeze_count()
            gc.collect(1)  # of what is young: it is short whatever is alive
            assert gc.get_freeze_count() == frozen
            gc.collect()
            assert gc.get_freeze_count() >= frozen + len(kept)
            assert again == [gc.collect]
            loop = asyncio.new_event_loop()
            loop.close()
            gc.callbacks[:] = callbacks
            process_module.freeze_after_long_collections(loop.call_soon_threadsafe)
            watch = gc.callbacks[-1]
            watch("start", {"generation": 2})
            watch("stop", {"generation": 2})  # in a process that is about to end: its loop is closed
    finally:
        gc.callbacks[:] = callbacks
        gc.set_threshold(*threshold)
        gc.unfreeze()
        gc.enable()


def test_no_other_user_may_read_what_it_writes(start: Start) -> None:
    process = start()
    process.started()
    assert stat.S_IMODE(process.data_dir.stat().st_mode) == 0o700
    names = {file.name: stat.S_IMODE(file.stat().st_mode) for file in process.data_dir.iterdir()}
    assert names.keys() >= {".lock", "process.json", "told"}
    assert set(names.values()) == {0o600}


def test_a_folder_that_others_may_read_is_closed_to_them_with_a_warning(tmp_path: Path, start: Start) -> None:
    folder = tmp_path / "deep" / "data"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    process = start()
    process.started()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    process.popen.send_signal(signal.SIGTERM)
    assert f"was open to others, and is closed now directory={folder} mode=0755" in process.ends(0)


def test_it_may_open_as_many_files_as_the_system_allows(start: Start) -> None:
    process = start()
    process.started()
    limits = Path(f"/proc/{process.popen.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    assert soft == hard


# ---- Without a process ----


def run(test: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def test_a_refusal_counts_at_any_time_and_what_keeps_it_from_starting_only_before() -> None:
    refused = program(refusals=(CannotBe,))
    for had_started in (False, True):
        assert refused.cannot_run(Ending(CannotBe("gone"), had_started))
        assert program().cannot_run(Ending(OSError("port"), had_started)) is not had_started
        assert program().cannot_run(Ending(CannotBe("gone"), had_started)) is not had_started
        assert not refused.cannot_run(Ending(InvariantBroken("1 is 2"), had_started))
        assert not refused.cannot_run(Ending(None, had_started))


def test_a_line_of_the_log_has_time_level_process_and_what_happened() -> None:
    stream, logger = io.StringIO(), logging.Logger("fencepost.part")
    handler = LineHandler(stream)
    handler.setFormatter(LineFormatter("broker=%1"))
    logger.addHandler(handler)
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Event)
    try:
        logger.info("moved topic=%s end=%d", "a", 7)
        logger.warning("of %(what)s", {"what": "a mapping"})
        try:
            raise InvariantBroken("1 is 2")
        except InvariantBroken:
            logger.exception("failed")
        with patch.object(logging, "raiseExceptions", False):
            logger.info("%d", "no number")
        logger.info("goes on")
    finally:
        logging.setLogRecordFactory(factory)
    first, second, third, *trace, last = stream.getvalue().splitlines()
    line = re.fullmatch(
        r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} INFO broker=%1 fencepost.part moved topic=a end=7", first
    )
    assert line is not None, first
    assert abs(time.mktime(time.strptime(line[1], "%Y-%m-%d %H:%M:%S")) - time.time()) < 60
    assert second.endswith("WARNING broker=%1 fencepost.part of a mapping")
    assert third.endswith("ERROR broker=%1 fencepost.part failed")
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[-1].endswith("InvariantBroken: 1 is 2")
    assert last.endswith("goes on")


@asynchronous
async def test_the_first_error_of_a_group_is_the_one_that_counts(tmp_path: Path) -> None:
    class Grouped(Nothing):
        async def start(self) -> None:
            raise ExceptionGroup("logs", [ExceptionGroup("one", [CannotBe("first"), OSError("second")])])

    component = Grouped(NothingConfig(data_dir=str(tmp_path)))
    ending = await live(component, asyncio.Event(), lambda: None)
    assert isinstance(ending.error, CannotBe)
    assert not ending.had_started


@asynchronous
async def test_a_failure_that_is_reported_while_it_stops_is_its_ending(tmp_path: Path) -> None:
    class Failing(Nothing):
        async def stop(self, clean: bool) -> None:
            self.failure.report(InvariantBroken("found at the end"))
            self.failure.report(OSError("and then this"))

    asked_to_stop = asyncio.Event()
    component = Failing(NothingConfig(data_dir=str(tmp_path)))
    ending = await live(component, asked_to_stop, asked_to_stop.set)
    assert isinstance(ending.error, InvariantBroken)
    assert ending.had_started


@asynchronous
async def test_a_failure_reaches_everyone_who_waits_even_where_one_of_them_has_left() -> None:
    failure = Failure("nothing")
    leaving = asyncio.create_task(failure.wait())
    staying = asyncio.create_task(failure.wait())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert not failure.happened
    failure.report(InvariantBroken("1 is 2"))
    assert failure.happened
    for waiting in (staying, asyncio.create_task(failure.wait())):
        with pytest.raises(InvariantBroken):
            await waiting
