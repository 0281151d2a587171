"""Chaos runs: exact, reported, harmless to others, and able to find what is wrong."""

from __future__ import annotations

import json
import operator
import signal
import subprocess
from pathlib import Path

import pytest

from fencepost_testing.chaos.network import Network, NetworkUnavailable
from fencepost_testing.waiting import until_sync
from tests.integration.command_line import Shell
from tests.integration.etcd_processes import ETCD, NO_ETCD
from tests.integration.test_demo import processes_of

DEADLINE_S = 60.0


def cannot_make_namespaces() -> str:
    """Why not; empty: they can be made here."""
    try:
        Network.make(["one", "other"]).close()
    except NetworkUnavailable as unavailable:
        return str(unavailable)
    return ""


def namespaces() -> set[str]:
    try:
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return set()
    return {line.split()[0] for line in listed.splitlines() if line.startswith("fp")}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_minute_of_chaos_is_exact(tmp_path: Path) -> None:
    report = tmp_path / "report"
    shell = Shell(tmp_path, timeout_s=220)
    told = json.loads(
        shell.ok("chaos", "--duration", "60s", "--seed", "1", "--json", "--report", str(report)).splitlines()[-1]
    )
    assert told["exact"] is True
    assert (told["lost"], told["duplicated"], told["reordered"], told["problems"]) == (0, 0, 0, [])
    assert told["acknowledged"] > 3_000
    assert told["records_in_log"] >= told["acknowledged"] - told["lost_as_told"]
    assert told["replicas_checked"] == 3 * told["partitions"]
    assert told["faults"] > 15
    carried_out, skipped = set(told["faults_by_kind"]), set(told["skipped_by_kind"])
    assert {"kill-all", "kill-controller", "take-over"} <= carried_out
    assert {"unclean-after-pause", "unclean-after-kill"} <= carried_out | skipped
    assert {"kill-leader", "pause-leader"} <= carried_out | skipped  # at their moments there may be no leader
    assert told["named_producers_resumed"] > 0
    assert told["network_cuts"] is True, told["no_network_cuts_because"]
    by = "faults in the processes" if cannot_make_namespaces() else "network namespaces"
    assert told["network_cuts_by"].startswith(by)
    assert {"isolate-leader", "cut-one-way"} <= set(told["faults_by_kind"])
    for name in ("verdict.json", "index.html", "nemesis.jsonl", "history", "logs", "latency.png", "throughput.png"):
        assert (report / name).exists(), name
    assert not (report / "cluster").exists(), "an exact run leaves no data behind"
    checked = json.loads(
        shell.ok("check", "--json", *map(str, sorted((report / "history").glob("*.jsonl")))).splitlines()[-1]
    )
    assert checked["stamped"] >= checked["acked"] == told["acknowledged"]
    assert processes_of(report) == []
    assert logs_with_tracebacks(report) == []


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("client", ["confluent-kafka", "mixed"])
def test_kafkas_clients_and_groups_are_exact_under_chaos(tmp_path: Path, client: str) -> None:
    report = tmp_path / "report"
    shell = Shell(tmp_path, timeout_s=220)
    arguments = ("--client", client, "--duration", "20s", "--seed", "2", "--json", "--report", str(report))
    told = json.loads(shell.ok("chaos", *arguments).splitlines()[-1])
    assert told["exact"] is True, told["problems"]
    assert told["client"] == client
    assert told["acknowledged"] > 500
    assert told["commits"] > 20
    assert {"kill-member", "pause-member"} & set(told["faults_by_kind"])
    assert told["unclean_elections"] == 0
    assert logs_with_tracebacks(report) == []


@pytest.mark.slow
def test_chaos_finds_brokers_out_that_forget_what_they_have_seen(tmp_path: Path) -> None:
    """A verdict is worth something only if it can be otherwise: these brokers append what they have already."""
    report = tmp_path / "report"
    shell = Shell(tmp_path, timeout_s=110, extra={"PYTHONPATH": str(Path(__file__).parent / "forgetful")})
    result = shell.run("chaos", "--duration", "8s", "--no-cuts", "--json", "--report", str(report))
    assert result.returncode == 1
    assert f"To look at it: {report / 'index.html'}" in result.stderr
    assert "fencepost chaos --duration 8s --seed 0 --brokers 3 --partitions 4 --rate 300 --no-cuts" in result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["exact"] is False
    assert told["duplicated"] > 0
    assert told["wrong"]["duplicate"] > 0
    assert told["wrong"]["replica files: duplicated"] > 0
    assert (report / "wrong.png").exists()
    assert (report / "cluster" / "broker-1").exists(), "the data stay for a closer look"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_broken_off_leaves_no_process_and_no_namespace(tmp_path: Path, number: signal.Signals) -> None:
    report = tmp_path / "report"
    before = namespaces()
    nemesis = report / "nemesis.jsonl"
    child = Shell(tmp_path).start("chaos", "--duration", "60s", "--report", str(report))
    try:
        until_sync(lambda: nemesis.exists() and "began" in nemesis.read_text(), "the first fault", DEADLINE_S)
        assert len(processes_of(report)) > 5
        child.send_signal(number)
        _, errors = child.communicate(timeout=DEADLINE_S)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert "Traceback" not in errors
    if number != signal.SIGKILL:
        assert f"broken off; what its processes recorded and logged is in {report}" in errors
    until_sync(lambda: processes_of(report), "no process is left", DEADLINE_S, holds=operator.not_, poll_s=0.05)
    until_sync(
        lambda: ours(namespaces() - before, report),
        "no namespace is left",
        DEADLINE_S,
        holds=operator.not_,
        poll_s=0.05,
    )


def ours(left: set[str], report: Path) -> set[str]:
    """Other tests may make namespaces at the same time."""
    return {name for name in left if name.split("-")[0] == network_of(report)}


def network_of(report: Path) -> str:
    """Its number is in the addresses that its clients were told: 198.18.N.i belongs to fpN in hexadecimal."""
    told = json.loads(next((report / "clients").glob("*.json")).read_text())["bootstrap"]
    first, second, third, _ = told.split(":")[0].split(".")
    return f"fp{(int(second) - 18) * 256 + int(third):03x}" if first == "198" else ""


@pytest.mark.skipif(ETCD is None, reason=NO_ETCD)
def test_several_controllers_and_their_etcd_are_harmed_and_the_log_is_exact(tmp_path: Path) -> None:
    report = tmp_path / "report"
    arguments = ("--controllers", "3", "--duration", "15s", "--seed", "5", "--json", "--report", str(report))
    told = json.loads(Shell(tmp_path).ok("chaos", *arguments).splitlines()[-1])
    assert (told["exact"], told["controllers"]) == (True, 3), told["problems"]
    assert any("etcd" in kind for kind in told["faults_by_kind"])
    assert (report / "logs" / "etcd-1.log").exists()


def test_a_report_wants_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("of someone's")
    shell = Shell(tmp_path)
    assert "is not empty" in shell.fails("chaos", "--report", str(tmp_path), code=2)
    assert "not a time" in shell.fails("chaos", "--duration", "soon", code=2)


@pytest.mark.slow
def test_without_namespaces_links_are_cut_by_faults_in_the_processes(tmp_path: Path) -> None:
    report = tmp_path / "report"
    shell = Shell(tmp_path, timeout_s=110, extra={"PATH": str(tmp_path)})  # where there is no command ip
    told = json.loads(
        shell.ok("chaos", "--duration", "10s", "--seed", "3", "--json", "--report", str(report)).splitlines()[-1]
    )
    assert told["exact"] is True, told["problems"]
    assert told["network_cuts_by"] == "faults in the processes (network namespaces need the command ip (iproute2))"
    assert {kind for kind in told["faults_by_kind"] if "cut" in kind or "isolate" in kind or kind == "split"}
    assert any("faults in force: cut-" in log.read_text() for log in (report / "logs").iterdir())
    assert logs_with_tracebacks(report) == []


def logs_with_tracebacks(report: Path) -> list[str]:
    """Whatever is done to a process, it meets nothing that no one foresaw."""
    return [log.name for log in (report / "logs").iterdir() if "Traceback" in log.read_text()]
