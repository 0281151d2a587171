"""`fencepost check`: exit codes, what is printed, several files, and files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fencepost.history_format import Operation, to_line
from fencepost_cli.main import app
from fencepost_testing import history_files
from tests.unit.history_story import Story


def write(path: Path, operations: list[Operation]) -> Path:
    path.write_text("".join(to_line(operation) + "\n" for operation in operations))
    return path


def check(*arguments: Path | str) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def told(result: Result) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(result.output.splitlines()[-1])
    return answer


def clean_story() -> Story:
    story = Story()
    story.acked("a", "b")
    story.poll(0, "a", "b")
    return story


def test_a_clean_history_ends_with_0(tmp_path: Path) -> None:
    result = check(write(tmp_path / "h.jsonl", clean_story().operations), "--json")
    assert result.exit_code == 0
    assert "CLEAN" in result.output
    assert "NOT CLEAN" not in result.output
    answer = told(result)
    assert answer["ok"] is True
    assert (answer["lines"], answer["sends"], answer["acked"], answer["records_read"]) == (5, 2, 2, 2)
    assert answer["anomalies"] == {}


def test_how_many_sequence_numbers_could_be_followed_is_reported(tmp_path: Path) -> None:
    story = Story()
    story.send("a", "b", "c")
    story.ok("a", 0, stamp=(7, 0, 0))
    story.info("b", stamp=(7, 0, 1))
    story.ok("c", 2)
    story.poll(0, "a", "b", "c")
    result = check(write(tmp_path / "h.jsonl", story.operations), "--json")
    assert "3 sends: 2 acknowledged, 0 failed, 1 unknown, 2 with a known sequence number" in result.output
    assert told(result)["stamped"] == 2


def test_an_anomaly_ends_with_1_and_is_shown_with_its_lines(tmp_path: Path) -> None:
    story = clean_story()
    story.poll(0, "a", process="d")
    story.poll(0, "b", process="e")
    path = write(tmp_path / "h.jsonl", story.operations)
    result = check(path, "--json")
    assert result.exit_code == 1
    assert "NOT CLEAN" in result.output
    assert "inconsistent-offsets orders-0 offset 0 holds 'a' and 'b'" in result.output
    assert f"> {path}:7  0.000000 s e poll" in result.output
    answer = told(result)
    assert answer["ok"] is False
    assert answer["anomalies"] == {"duplicate": 1, "inconsistent-offsets": 1}
    assert {finding["anomaly"] for finding in answer["findings"]} == {"duplicate", "inconsistent-offsets"}
    assert any(line["at"] == f"{path}:7" and line["evidence"] for line in answer["findings"][0]["operations"])


def test_records_of_others_may_be_allowed(tmp_path: Path) -> None:
    story = clean_story()
    story.poll(2, "x")
    path = write(tmp_path / "h.jsonl", story.operations)
    assert told(check(path, "--json"))["anomalies"] == {"phantom": 1}
    assert check(path, "--foreign-records").exit_code == 0


def test_several_files_are_merged_by_time(tmp_path: Path) -> None:
    """Read one after the other, the final read would come before what it must find."""
    story = clean_story()
    story.final(0, "a")
    files = [
        write(tmp_path / f"{process}.jsonl", [line for line in story.operations if line.process == process])
        for process in ("reader", "c", "p")
    ]
    result = check(*files, "--json")
    assert told(result)["anomalies"] == {"lost-write": 1}
    assert f"> {tmp_path / 'p.jsonl'}:4  " in result.output


def test_a_line_that_is_no_operation_ends_with_2_and_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "h.jsonl", clean_story().operations)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], '{"process":"p"}', *lines[2:]]) + "\n")
    result = check(path)
    assert result.exit_code == 2
    assert f"{path}:3: type is None" in result.output
    assert "Traceback" not in result.output


def test_operations_that_contradict_each_other_end_with_2_and_are_named(tmp_path: Path) -> None:
    story = clean_story()
    story.ok("a", 0)
    path = write(tmp_path / "h.jsonl", story.operations)
    result = check(path)
    assert result.exit_code == 2
    assert f"{path}:6: ok of send 1 of p to topic 'orders': it was never invoked" in result.output


def test_a_file_that_is_not_there_ends_with_2_and_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        result = check(path)
        assert result.exit_code == 2
        assert str(path) in result.output
        assert "Traceback" not in result.output


def test_a_last_line_that_was_not_written_to_its_end_is_left_out_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "h.jsonl", clean_story().operations)
    path.write_text(path.read_text() + '{"process":"p","ti')
    result = check(path, "--json")
    assert result.exit_code == 0
    assert told(result)["torn"] == [f"{path}:6: a last line that was not written to its end"]
    assert "left out: " in result.output


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_files, "MAX_LINE_BYTES", 1_000)
    path = write(tmp_path / "h.jsonl", clean_story().operations)
    path.write_text(path.read_text() + "0" * 5_000)
    result = check(path)
    assert result.exit_code == 2
    assert f"{path}:6: a line of 1000 bytes or more" in result.output


def test_empty_lines_are_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "h.jsonl", clean_story().operations)
    path.write_text("\n" + path.read_text().replace("\n", "\n\n"))
    assert check(path).exit_code == 0
