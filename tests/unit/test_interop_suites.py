"""What is read of the suites of others: their lists of tests, and how each test ended."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.asynchronous import run
from tests.interop.suites import kgo, librdkafka
from tests.interop.suites.excluded import BEGIN, END, excluded_lines
from tests.interop.suites.suite import Job, Outcome, State, run_jobs, summary
from tests.interop.table import DOCUMENT

TIMEOUT_S = 30.0

KGO_OUTPUT = """\
=== RUN   TestGroupETL
=== RUN   TestGroupETL/range
    group_test.go:77: saw double offset t one p3o17
=== RUN   TestGroupETL/range/848
--- FAIL: TestGroupETL (12.34s)
    --- FAIL: TestGroupETL/range (10.00s)
    --- PASS: TestGroupETL/range/848 (11.50s)
FAIL
"""

LIST = """
struct test tests[] = {
    {.name = "<MAIN>", .flags = TEST_F_LOCAL},
    _TEST(0004_conf, TEST_F_LOCAL),
    _TEST(0011_produce_batch,
          0,
          /* Produces a lot of messages */
          _THRES(.ucpu = 40.0, .scpu = 8.0)),
    _TEST(0045_subscribe_update_topic_remove,
          0,
          TEST_BRKVER(0, 9, 0, 0),
          .scenario = "noautocreate"),
    _TEST(0066_plugins,
          TEST_F_LOCAL | TEST_F_KNOWN_ISSUE_WIN32,
          .extra = "of no (interest"),
    _TEST(0103_transactions,
          0,
          TEST_BRKVER(0, 11, 0, 0),
          .scenario = "default,ak23"),
    _TEST(8000_idle, TEST_F_MANUAL),
    {NULL}};
"""

_LINE = "#==================================================================#"
_BLUE, _RED, _GREEN, _END = "\x1b[36m", "\x1b[31m", "\x1b[32m", "\x1b[0m"
TABLE = f"""\
TEST 20261128 (bare, scenario default) SUMMARY
{_LINE}
|{_GREEN} <MAIN>                                   |     PASSED |  32.500s {_END}|
|{_BLUE} 0022_consume_batch_local                 |    SKIPPED |   0.000s {_END}|{_BLUE} test flags{_END}
|{_RED} 0022_consume_batch                       |     FAILED |  30.125s {_END}|{_RED} test_consumer():42: got 2{_END}
|{_GREEN} 0081_admin                               |     PASSED |   2.250s {_END}|
{_LINE}
"""

SOURCE = """
static void helper(int x) { }
static void do_test_CreateTopics(const char *what,
                                 int x) {
        SUB_TEST_QUICK();
        SUB_TEST_PASS();
}

static void
do_test_CreateAcls(rd_kafka_t *rk) {
        SUB_TEST_PASS();
}
static void do_test_apis(rd_kafka_type_t cltype) {
        do_test_CreateTopics("", 1);
}
"""


def test_a_go_tests_parts_and_its_complaint_are_read() -> None:
    told = kgo.read("TestGroupETL", KGO_OUTPUT, 1)
    assert [(each.test, each.state) for each in told] == [
        ("TestGroupETL", State.FAILED),
        ("TestGroupETL/range", State.FAILED),
        ("TestGroupETL/range/848", State.PASSED),
    ]
    assert told[0].note == "saw double offset t one p3o17"
    assert told[2].seconds == 11.5


def test_of_a_go_test_that_runs_twice_a_failure_counts_or_the_second_time() -> None:
    first, second = "--- SKIP: TestA/848 (0.00s)\n", "--- PASS: TestA/848 (1.00s)\n"
    assert [each.state for each in kgo.read("TestA", first + second, 0)] == [State.PASSED]
    failed = "--- FAIL: TestA/848 (0.00s)\n"
    assert [each.state for each in kgo.read("TestA", failed + second, 1)] == [State.FAILED]


def test_a_go_test_that_says_nothing_has_failed() -> None:
    assert kgo.read("TestPing", "panic: no brokers", 2) == [
        Outcome("TestPing", State.FAILED, note="ended with status 2")
    ]
    assert kgo.read("TestPing", "", None)[0].note == "has not ended in time"
    assert kgo.read("TestPing", "", -11)[0].note == "killed by SIGSEGV"


def test_librdkafkas_list_without_local_and_manual_tests() -> None:
    assert librdkafka.listed(LIST) == [
        librdkafka.Listed("0011_produce_batch", "default"),
        librdkafka.Listed("0045_subscribe_update_topic_remove", "noautocreate"),
        librdkafka.Listed("0103_transactions", "default,ak23"),
    ]


def test_the_parts_of_a_test_are_its_functions_that_announce_themselves() -> None:
    assert librdkafka.parts_of(SOURCE) == ["do_test_CreateTopics", "do_test_CreateAcls"]


def test_librdkafkas_table_is_read() -> None:
    assert librdkafka.read("0022", ["0022_consume_batch"], TABLE, 1) == [
        Outcome("0022_consume_batch", State.FAILED, 30.125, "test_consumer():42: got 2")
    ]
    part = "0081_admin/do_test_CreateTopics"
    assert librdkafka.read(part, [part], TABLE, 0) == [Outcome(part, State.PASSED, 2.25)]


def test_a_runner_without_a_table_has_failed_also_where_its_status_is_zero() -> None:
    assert librdkafka.read("0001", ["0001_multiobj"], "nothing", 0) == [
        Outcome("0001", State.FAILED, note="ended with status 0")
    ]
    passed_and_crashed = librdkafka.read("0081", ["0081_admin"], TABLE, -6)
    assert [each.state for each in passed_and_crashed] == [State.PASSED, State.FAILED]


def test_jobs_are_run_side_by_side_and_killed_at_their_time(tmp_path: Path) -> None:
    def job(name: str, code: str, timeout_s: float) -> Job:
        def read(said: str, status: int | None) -> list[Outcome]:
            return [Outcome(name, State.PASSED if status == 0 else State.FAILED, note=f"{said.strip()} {status}")]

        return Job(name, (sys.executable, "-c", code), tmp_path, {"GREETING": "hello"}, timeout_s, read)

    jobs = [
        job("sleeps", "import time; time.sleep(60)", 0.2),
        job("greets", "import os; print(os.environ['GREETING'])", TIMEOUT_S),
    ]
    seen: list[Outcome] = []
    outcomes = run(run_jobs(jobs, 2, tmp_path, seen.append), TIMEOUT_S)
    assert sorted(outcomes, key=lambda each: each.test) == [
        Outcome("greets", State.PASSED, note="hello 0"),
        Outcome("sleeps", State.FAILED, note=" None"),
    ]
    assert seen == outcomes
    assert (tmp_path / "greets.log").read_text() == "hello\n"


def test_the_summary_counts_and_names_what_did_not_pass() -> None:
    outcomes = [
        Outcome("a", State.PASSED),
        Outcome("b", State.FAILED, note="why"),
        Outcome("c", State.EXCLUDED, note="SASL"),
        Outcome("d", State.PASSED),
    ]
    assert [line.split() for line in summary(outcomes)] == [
        ["2", "passed,", "1", "FAILED,", "1", "excluded"],
        ["FAILED", "b", "why"],
        ["excluded", "c", "SASL"],
    ]


def test_the_document_lists_what_is_excluded() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert document.split(BEGIN)[1].split(END)[0].strip() == excluded_lines()
