"""What a chaos run counts, measures and holds named producers' answers to; and its report, of a run that went wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from fencepost.history_format import Operation
from fencepost_cli.commands.chaos import duration_of
from fencepost_testing.chaos.faults import Fault, FaultKind
from fencepost_testing.chaos.measure import Measure, outages
from fencepost_testing.chaos.nemesis_log import Happened
from fencepost_testing.chaos.page import summary
from fencepost_testing.chaos.report import write_report
from fencepost_testing.chaos.result import ChaosOptions, ChaosResult
from fencepost_testing.chaos.resumed import NOTHING, Overruled, ResumeAnswer, ResumedCheck
from fencepost_testing.history_check import check_history
from fencepost_testing.log_check.findings import Kind as Wrong
from fencepost_testing.read_back import FINAL_READER

START_NS = 5_000_000_000


def at(seconds: float) -> int:
    return START_NS + round(seconds * 1e9)


def sent(
    number: int, sent_s: float, done_s: float, kind: str = "ok", *, partition: int = 0, offset: int = 0
) -> Iterator[Operation]:
    yield Operation("p", at(sent_s), "invoke", "send", number, "t", value=f"v{number}")
    if kind == "ok":
        yield Operation("p", at(done_s), "ok", "send", number, "t", partition, offset=offset)
    elif kind != "never":
        yield Operation(
            "p", at(done_s), "fail" if kind == "fail" else "info", "send", number, "t",
            may_have_been_appended=kind == "info",
        )  # fmt: skip


def measured(*operations: Operation) -> Measure:
    measure = Measure(START_NS)
    for operation in sorted(operations, key=lambda operation: operation.time_ns):
        measure.add(operation)
    return measure


def test_latencies_and_outcomes_by_second() -> None:
    measure = measured(
        *sent(1, 0.1, 0.2),
        *sent(2, 0.5, 1.5),
        *sent(3, 1.0, 1.1, "fail"),
        *sent(4, 1.0, 2.5, "info"),
        *sent(5, 1.0, 0, "never"),
    )
    assert list(measure.latency) == pytest.approx([0.1, 1.0])
    assert (measure.acked_in_second, measure.failed_in_second, measure.unknown_in_second) == (
        {0: 1, 1: 1},
        {1: 1},
        {2: 1},
    )
    assert measure.latency_ms(0.5) == pytest.approx(1000)
    assert measure.latency_ms(0) == pytest.approx(100)
    assert measure.operations == 5
    assert math.isnan(measured().latency_ms(0.5))


def test_the_longest_silence_is_that_of_one_partition_and_counts_from_the_first_send() -> None:
    measure = measured(
        *sent(1, 1.0, 1.5, partition=0),
        *sent(2, 2.0, 2.1, partition=1),  # silent since 1.0
        *sent(3, 2.0, 4.0, partition=0),
        *sent(4, 4.0, 4.5, partition=1),
    )
    longest = {p: (s.began_s, s.ended_s) for p, s in measure.longest_silence.items()}
    assert longest == {0: (1.5, 4.0), 1: (pytest.approx(2.1), 4.5)}
    silence = measure.longest_unavailability
    assert silence is not None
    assert (silence.partition, silence.duration_s) == (0, 2.5)


def test_noticeable_silences_are_put_together_where_they_overlap() -> None:
    measure = measured(
        *sent(1, 0.0, 0.5, partition=0),
        *sent(2, 0.0, 0.6, partition=1),
        *sent(3, 1.0, 3.0, partition=0),
        *sent(4, 1.0, 3.5, partition=1),
        *sent(5, 3.0, 3.9, partition=0),  # too short to be told
        *sent(6, 4.0, 6.0, partition=0),
    )
    told = [(outage.began_s, outage.ended_s, outage.partitions) for outage in outages(measure.noticeable)]
    assert told == [(0.5, 3.5, [0, 1]), (pytest.approx(3.9), 6.0, [0])]
    assert [outage.longest_s for outage in outages(measure.noticeable)] == pytest.approx([2.9, 2.1])


def test_what_the_last_consumer_reads_is_not_throughput() -> None:
    read = Operation("reader", at(1), "ok", "poll", 1, "t", 0, records=((0, "a"), (1, "b")))
    measure = measured(read, read._replace(process=FINAL_READER))
    assert measure.read_in_second == {1: 2}


# ---- What named producers were told ----


def problems(told: list[ResumeAnswer], log: list[tuple[int, str]], overruled: tuple[Overruled, ...] = ()) -> list[str]:
    check = ResumedCheck(told, overruled)
    for offset, value in log:
        check.add(0, offset, value)
    return check.finish()


LOG = [(0, "loader.1:0:"), (1, "mover.1:0:"), (2, "loader.1:1:"), (3, "loader.2:0:")]


def told(process: str, epoch: int, offset: int = NOTHING, value: str | None = None) -> ResumeAnswer:
    return ResumeAnswer(process, 0, offset, value, 7, epoch)


def test_an_answer_that_names_the_predecessors_last_record_holds() -> None:
    assert problems([told("loader.1", 0), told("loader.2", 1, 2, "loader.1:1:"), told("mover.1", 0)], LOG) == []


def test_a_record_of_a_predecessor_after_the_answer_is_found() -> None:
    (problem,) = problems([told("loader.1", 0), told("loader.2", 1, 0, "loader.1:0:")], LOG)
    assert "a record of loader.1, of a lower epoch, stands at 2" in problem
    (problem,) = problems([told("loader.1", 0), told("loader.2", 1)], LOG)
    assert "at no offset; a record of loader.1, of a lower epoch, stands at 2" in problem


def test_who_came_before_is_a_matter_of_epochs_not_of_names() -> None:
    """Chaos with little rest, seed 106: of two instances that began at the same time the later one got the lower epoch."""
    turned_round = [told("loader.2", 0), told("loader.1", 1, 1, "loader.2:0:")]
    assert problems(turned_round, [(1, "loader.2:0:"), (2, "loader.1:0:")]) == []
    (problem,) = problems(turned_round, [(1, "loader.2:0:"), (2, "loader.1:0:"), (3, "loader.2:1:")])
    assert "loader.1 got the answer" in problem
    assert "a record of loader.2, of a lower epoch, stands at 3" in problem


def test_an_answer_that_names_another_record_is_found() -> None:
    (problem,) = problems([told("loader.2", 1, 2, "loader.1:7:")], LOG)
    assert "there stands 'loader.1:1:'" in problem
    (problem,) = problems([told("loader.2", 1, 9, "loader.1:7:")], LOG)
    assert "there stands None" in problem


def test_an_unclean_election_may_take_what_was_answered_before_it_and_no_more() -> None:
    answers = [told("loader.1", 0), told("loader.2", 1, 2, "loader.1:7:"), told("loader.3", 2, 0, "loader.1:0:")]
    assert (
        len(problems(answers, LOG)) == 3
    )  # another record stands at 2; behind 0 stand records of loader.1 and loader.2
    assert problems(answers, LOG, (Overruled(0, 1, 2),)) == []
    assert len(problems(answers, LOG, (Overruled(0, 1, 3),))) == 2, "what is kept is kept"
    assert len(problems(answers, LOG, (Overruled(1, 1, 2),))) == 3, "of another partition"
    assert len(problems(answers, LOG, (Overruled(0, 0, 2),))) == 3, "before the question"


def test_answers_survive_their_file() -> None:
    answer = ResumeAnswer("loader.2", 3, 7, "loader.1:7:", 12, 4)
    assert ResumeAnswer.from_line(answer.to_line()) == answer


# ---- The verdict and its report ----


def result_of(lines: list[Operation]) -> ChaosResult:
    result = ChaosResult(ChaosOptions(seed=7), started_at=0.0, faults_end_s=10.0)
    fault = Fault(1.0, 2.0, FaultKind.KILL_LEADER, ("leader-0",))
    result.happened = [Happened(fault, ("broker-1",), 1.0, 3.0)]
    result.history = check_history(lines)
    result.measure = measured(*lines)
    return result


FINAL = [
    Operation(FINAL_READER, at(9), "invoke", "final", 1, "t", 0),
    Operation(FINAL_READER, at(9.1), "ok", "poll", 2, "t", 0, records=((0, "v1"),), high_watermark=1),
    Operation(FINAL_READER, at(9.2), "ok", "final", 1, "t", 0, start_offset=0, end_offset=1),
]


def test_a_clean_run_is_exact_and_anything_wrong_makes_it_not_exact() -> None:
    clean = [*sent(1, 0.5, 4.0), *FINAL]
    assert result_of(clean).exact
    assert "exactly once" in summary(result_of(clean))
    with_problem = result_of(clean)
    with_problem.problems.append("broker-1 ended by itself with exit code 70")
    assert not with_problem.exact
    with_finding = result_of(clean)
    with_finding.findings.add(Wrong.DUPLICATED, "twice")
    assert not with_finding.exact
    assert with_finding.duplicated == 1
    without_history = result_of(clean)
    without_history.history = None
    assert not without_history.exact


def test_a_silence_names_the_faults_that_fell_into_it() -> None:
    result = result_of([*sent(1, 0.5, 4.0), *FINAL])
    silence = result.longest_unavailability()
    assert silence is not None
    pause = Fault(3.5, 1.0, FaultKind.PAUSE_BROKER, ("broker-2",))
    result.happened += [
        Happened(pause, ("broker-2",), 3.5, 4.5),
        Happened(Fault(1.0, 2.0, FaultKind.PAUSE_CONSUMER, ("reader",)), ("reader",), 1.0, 3.0),
        Happened(Fault(4.5, 2.0, FaultKind.KILL_ALL, ("controller",)), ("controller",), 4.5, 6.5),
    ]
    assert [happened.fault.kind for happened in result.during(silence)] == [
        FaultKind.KILL_LEADER,
        FaultKind.PAUSE_BROKER,
    ]
    (told,) = result.to_json("")["unavailable"]
    assert told == {
        "from_s": 0.5,
        "to_s": 4.0,
        "longest_s": 3.5,
        "partitions": [0],
        "faults": ["kill-leader broker-1", "pause-broker broker-2"],
    }


def test_the_report_of_a_lost_record_shows_it_everywhere(tmp_path: Path) -> None:
    lost = [*sent(1, 0.5, 4.0), *sent(2, 0.6, 4.1, offset=1), *FINAL]
    lost[-1] = lost[-1]._replace(end_offset=2)
    result = result_of(lost)
    assert not result.exact
    write_report(result, tmp_path)
    told = json.loads((tmp_path / "verdict.json").read_text())
    assert (told["exact"], told["lost"], told["acknowledged"]) == (False, 1, 2)
    assert "lost-write" in told["wrong"]
    page = (tmp_path / "index.html").read_text()
    assert "not exact" in page
    assert "lost-write" in page
    assert "kill-leader" in page
    for picture in ("latency.png", "throughput.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG"), result.no_pictures_because
        assert picture in page


def test_a_run_that_never_began_has_a_report_without_pictures(tmp_path: Path) -> None:
    result = ChaosResult(ChaosOptions())
    result.problems.append("the run could not go on: broker 1 ended")
    write_report(result, tmp_path)
    assert not json.loads((tmp_path / "verdict.json").read_text())["exact"]
    assert "nothing was acknowledged" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("10m", 600), ("2h", 7200), ("90", 90), ("7.5s", 7.5)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert duration_of(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5s", "1s", "5d", "1m30s", "48h", "nan"])
def test_what_is_no_time_or_too_short_or_too_long_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        duration_of(text)
