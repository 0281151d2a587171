"""The daily commands, against a cluster that `fencepost cluster up` started and that stays up between commands."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fencepost_cli.main import app
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.waiting import until_sync
from tests.integration.command_line import Shell

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A cluster of three brokers. Each test leaves all of it running."""
    shell = Shell(tmp_path_factory.mktemp("cli") / "cluster")
    try:
        assert "cluster of 3 brokers is up" in shell.ok("cluster", "up")
        yield shell
    finally:
        cluster = AsyncLocalCluster.load(shell.data_dir)
        cluster.kill_all()


def status(shell: Shell) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(shell.run("cluster", "status", "--json").stdout)
    return told


def states(shell: Shell) -> dict[str, str]:
    return {process["name"]: process["state"] for process in status(shell)["processes"]}


def wait_healthy(shell: Shell) -> None:
    def in_sync() -> bool:
        told = status(shell)
        return told["healthy"] and all(len(p["isr"]) == len(p["replicas"]) for p in told["partitions"])

    until_sync(in_sync, "a healthy cluster with all replicas in sync", DEADLINE_S, poll_s=0.1)


def forget_boot(shell: Shell, *brokers: int) -> None:
    """Let stopped brokers find that the machine has booted since."""
    for broker in brokers:
        meta = shell.data_dir / f"broker-{broker}" / "meta.properties"
        meta.write_text(re.sub("boot.id=.*", "boot.id=of-the-boot-before", meta.read_text()))


def test_up_again_changes_nothing_and_another_size_is_refused(shell: Shell) -> None:
    pids = {process["name"]: process["pid"] for process in status(shell)["processes"]}
    shell.ok("cluster", "up")
    assert {process["name"]: process["pid"] for process in status(shell)["processes"]} == pids
    assert "has 3 brokers, not 5" in shell.fails("cluster", "up", "--brokers", "5")


def test_status_shows_processes_and_partitions(shell: Shell) -> None:
    shell.ok("topic", "create", "shown", "--partitions", "2")
    wait_healthy(shell)
    shell.ok("produce", "shown", stdin=b"one\ntwo\n")
    told = status(shell)
    assert states(shell) == dict.fromkeys(("controller", "broker 1", "broker 2", "broker 3"), "running")
    assert all(process["pid"] > 0 and process["memory_mb"] > 1 for process in told["processes"])
    shown = [partition for partition in told["partitions"] if partition["topic"] == "shown"]
    assert sum(partition["log_end_offset"] for partition in shown) == 2
    assert all(sorted(partition["isr"]) == [1, 2, 3] for partition in shown)
    text = shell.ok("cluster", "status")
    assert "broker 3" in text
    assert "shown" in text


def test_topics_are_made_described_and_deleted(shell: Shell) -> None:
    assert "4 partitions, 3 replicas" in shell.ok("topic", "create", "made", "--partitions", "4")
    assert "made: 4 partitions, 3 replicas" in shell.ok("topic", "list")
    described = json.loads(shell.ok("topic", "describe", "made", "--json"))
    assert described["config"]["min_insync_replicas"] == 2
    assert [partition["partition"] for partition in described["partitions"]] == [0, 1, 2, 3]
    assert "TOPIC_ALREADY_EXISTS" in shell.fails("topic", "create", "made")
    assert "made: 4 partitions" in shell.ok("topic", "create", "made", "--partitions", "2", "--if-not-exists")
    assert "INVALID_TOPIC" in shell.fails("topic", "create", "no/slash")
    assert "INVALID_REPLICATION_FACTOR" in shell.fails("topic", "create", "wide", "--replication-factor", "9")
    altered = shell.ok("topic", "alter", "made", "--set", "retention_ms=60000", "--partitions", "5")
    assert altered == "topic made: 5 partitions, retention_ms 60000\n"
    assert "INVALID_CONFIG: topic setting 'colour'" in shell.fails("topic", "alter", "made", "--set", "colour=red")
    assert "'colour' is not NAME=VALUE" in shell.fails("topic", "alter", "made", "--set", "colour", code=2)
    shell.ok("produce", "made", stdin=b"one\ntwo\n")
    emptied = shell.ok("topic", "delete-records", "made", "--all", "--yes").splitlines()
    assert sum(int(line.rpartition(" ")[2]) for line in emptied) == 2
    assert shell.ok("consume", "made", "--until-end") == ""
    assert "broker_id" in shell.ok("broker", "config", "1", "--changed")
    shell.ok("topic", "delete", "made", "--yes")
    assert "made" not in shell.ok("topic", "list")
    assert "UNKNOWN_TOPIC_OR_PARTITION" in shell.fails("topic", "describe", "made")


def test_a_partition_is_moved_and_its_records_with_it(shell: Shell) -> None:
    shell.ok("topic", "create", "moved", "--assign", "1,2")
    shell.ok("produce", "moved", stdin=b"one\ntwo\n")
    assert "done" in shell.ok("topic", "reassign", "moved", "0", "--replicas", "3,2", "--wait")
    (partition,) = json.loads(shell.ok("topic", "describe", "moved", "--json"))["partitions"]
    assert partition["replicas"] == [3, 2]
    assert shell.ok("consume", "moved", "--until-end") == "one\ntwo\n"
    assert "not a list of broker ids" in shell.fails("topic", "reassign", "moved", "0", "--replicas", "a", code=2)


def test_lines_go_in_and_come_out_with_their_keys(shell: Shell) -> None:
    shell.ok("topic", "create", "lines", "--partitions", "1")
    shell.ok("produce", "lines", "--key-separator", ":", stdin="k1:ä\nno key\nk2:a:b\n".encode())
    assert shell.ok("consume", "lines", "--until-end") == "ä\nno key\na:b\n"
    assert shell.ok("consume", "lines", "--key-separator", "=", "--count", "3") == "k1=ä\nno key\nk2=a:b\n"
    assert shell.ok("consume", "lines", "--partition", "0", "--offset", "2", "--until-end") == "a:b\n"
    assert "line 1: UNKNOWN_TOPIC_OR_PARTITION" in shell.fails("produce", "nothing", stdin=b"lost\n")
    large = b"small\n" + b"x" * 2_000_000 + b"\nafter\n"
    told = shell.fails("produce", "lines", stdin=large)
    assert "line 2: MESSAGE_TOO_LARGE" in told
    assert "(1 acknowledged)" in told
    assert shell.ok("consume", "lines", "--partition", "0", "--offset", "3", "--until-end") == "small\n"
    assert "offset 9 is behind the end" in shell.fails(
        "consume", "lines", "--partition", "0", "--offset", "9", "--until-end"
    )


def test_a_groups_offsets_are_shown_reset_and_forgotten(shell: Shell) -> None:
    def told(*arguments: str, code: int = 0) -> str:
        """In this process: a start costs more than the command."""
        done = CliRunner().invoke(app, ["group", *arguments], env=shell.environment(), catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done.output

    reset = ("reset-offsets", "nightly", "--topic", "lines", "--by-duration", "1h")
    assert "GROUP_ID_NOT_FOUND: there is no group 'nightly'" in told(*reset, code=1)
    assert "nothing is changed" in told(*reset, "--create")
    assert told("list") == ""
    assert "done" in told(*reset, "--create", "--execute")
    described = json.loads(told("describe", "nightly", "--json"))
    assert (described["state"], described["members"]) == ("Empty", [])
    (partition,) = described["partitions"]
    assert (partition["committed"], partition["log_end"], partition["lag"]) == (0, 4, 4)
    shifted = ("reset-offsets", "nightly", "--all-topics", "--shift-by", "9")
    assert "9 is beyond the end of the log" in told(*shifted)
    assert "exactly one of --to-earliest" in told(*shifted, "--to-latest", code=2)
    told("delete", "nightly", "--yes")
    assert "no group 'nightly'" in told("describe", "nightly", code=1)


def test_lines_are_sent_as_they_are_typed_and_an_interrupt_ends_it_at_once(shell: Shell) -> None:
    shell.ok("topic", "create", "typed", "--partitions", "1")
    typing = shell.start("produce", "typed")
    try:
        assert typing.stdin is not None
        typing.stdin.write("first\nunfinished")
        typing.stdin.flush()
        assert shell.ok("consume", "typed", "--count", "1") == "first\n"
        typing.send_signal(signal.SIGINT)
        assert typing.wait(timeout=DEADLINE_S) == 130
    finally:
        typing.kill()
        _, errors = typing.communicate()
    assert "Traceback" not in errors
    assert shell.ok("consume", "typed", "--until-end") == "first\n"


def test_a_reader_that_leaves_early_is_no_trouble(shell: Shell) -> None:
    shell.ok("topic", "create", "long", "--partitions", "1")
    shell.ok("produce", "long", stdin=b"".join(b"%d\n" % number for number in range(20_000)))
    consuming = shell.start("consume", "long", "--until-end")
    try:
        assert consuming.stdout is not None
        assert consuming.stdout.readline() == "0\n"
        consuming.stdout.close()
        consuming.wait(timeout=DEADLINE_S)
        assert consuming.stderr is not None
        assert "Traceback" not in consuming.stderr.read()
    finally:
        consuming.kill()
        consuming.wait()


def test_folders_that_cannot_be_made_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shell = Shell(tmp_path / "file" / "below")
    assert "cannot hold a cluster" in shell.fails("cluster", "up")
    assert "below" in shell.fails("bench", "--data-dir", str(tmp_path / "file" / "below"))


def test_producer_state_and_segments_can_be_looked_at(shell: Shell) -> None:
    shell.ok("topic", "create", "looked-at", "--partitions", "1")
    shell.ok("produce", "looked-at", stdin=b"one\ntwo\nthree\n")
    (described,) = json.loads(shell.ok("producers", "looked-at", "--json"))
    (producer,) = described["producers"]
    assert producer["batches"][-1]["last_sequence"] == 2
    leader = json.loads(shell.ok("topic", "describe", "looked-at", "--json"))["partitions"][0]["leader"]
    segment = shell.data_dir / f"broker-{leader}" / "looked-at-0" / f"{0:020d}.log"
    dumped = [json.loads(line) for line in shell.ok("dump-log", str(segment), "--json").splitlines()]
    assert sum(batch["record_count"] for batch in dumped) == 3
    assert {batch["producer_id"] for batch in dumped} == {producer["producer_id"]}


def test_a_killed_leader_is_replaced_and_comes_back(shell: Shell) -> None:
    shell.ok("topic", "create", "killed", "--partitions", "1")
    wait_healthy(shell)
    killed = shell.ok("cluster", "kill", "leader:killed-0").strip().removesuffix(" killed")
    until_sync(lambda: states(shell)[killed] == "down", f"{killed} down", DEADLINE_S, poll_s=0.1)
    assert shell.run("cluster", "status").returncode == 1
    assert "is not running" in shell.fails("cluster", "kill", killed.split()[-1])
    shell.ok("produce", "killed", stdin=b"after the kill\n")
    shell.ok("cluster", "restart", killed.split()[-1])
    wait_healthy(shell)
    assert shell.ok("consume", "killed", "--until-end") == "after the kill\n"


def test_a_paused_broker_is_shown_as_paused_until_it_is_resumed(shell: Shell) -> None:
    shell.ok("cluster", "pause", "2")
    assert states(shell)["broker 2"] == "paused"
    shell.ok("cluster", "resume", "2")
    wait_healthy(shell)


def test_a_broker_can_be_restarted_while_the_controller_is_away(shell: Shell) -> None:
    wait_healthy(shell)
    shell.ok("cluster", "kill", "controller")
    until_sync(lambda: states(shell)["controller"] == "down", "the controller is down", DEADLINE_S, poll_s=0.1)
    assert "serves once the controller does, which is down" in shell.ok("cluster", "restart", "1")
    assert shell.ok("cluster", "restart", "2", "controller").splitlines() == [
        "controller restarted",
        "broker 2 restarted",
    ]
    shell.ok("cluster", "pause", "controller")
    assert "is paused: 'fencepost cluster resume controller'" in shell.fails("cluster", "up")
    assert "which is paused" in shell.ok("cluster", "restart", "3")
    shell.ok("cluster", "resume", "controller")
    wait_healthy(shell)


def test_a_broker_can_be_restarted_while_another_is_paused(shell: Shell) -> None:
    wait_healthy(shell)
    shell.ok("cluster", "pause", "2")
    shell.ok("cluster", "restart", "1")
    shell.ok("cluster", "resume", "2")
    wait_healthy(shell)


def test_a_stopped_broker_and_controller_leave_cleanly_and_return(shell: Shell) -> None:
    wait_healthy(shell)
    shell.ok("cluster", "stop", "3", "controller")
    assert (shell.data_dir / "broker-3" / "clean-shutdown").exists()
    assert {name for name, state in states(shell).items() if state == "down"} == {"broker 3", "controller"}
    shell.ok("cluster", "up")
    wait_healthy(shell)


def test_a_broker_is_added_and_another_removed_with_its_place(shell: Shell) -> None:
    shell.ok("topic", "create", "stays", "--assign", "1,2,3", "--assign", "3,2,1")
    shell.ok("produce", "stays", stdin=b"one\ntwo\nthree\n")
    wait_healthy(shell)
    assert "broker 4 is up" in shell.ok("cluster", "add-broker")
    assert "is live: shut it down" in shell.fails("broker", "remove", "4")
    assert "still holds" not in shell.ok("cluster", "remove-broker", "3")
    described = json.loads(shell.ok("topic", "describe", "stays", "--json"))
    assert [partition["replicas"] for partition in described["partitions"]] == [[1, 2, 4], [4, 2, 1]]
    assert sorted(shell.ok("consume", "stays", "--until-end").split()) == ["one", "three", "two"]
    assert not (shell.data_dir / "broker-3").exists()
    listed = json.loads(shell.ok("broker", "list", "--json"))
    assert [broker["id"] for broker in listed] == [1, 2, 4]
    assert "no broker 3" in shell.fails("cluster", "remove-broker", "3")
    assert "there is no other live broker" in shell.fails("cluster", "remove-broker", "4")
    shell.ok("cluster", "add-broker")  # the lowest free id: 3 again
    shell.ok("cluster", "remove-broker", "4")
    wait_healthy(shell)
    assert sorted(states(shell)) == ["broker 1", "broker 2", "broker 3", "controller"]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("9", "no broker 9"),
        ("leader:nothing-0", "no such partition"),
        ("leader:", "no such partition"),
        ("everything", "is not a broker's id"),
    ],
)
def test_a_wrong_target_is_named_and_nothing_is_touched(shell: Shell, target: str, told: str) -> None:
    assert told in shell.fails("cluster", "kill", "1", target)
    assert states(shell)["broker 1"] == "running"


def test_workloads_are_verified_against_their_ledgers(shell: Shell) -> None:
    shell.ok("workload", "produce", "checked", "--count", "3000", "--keys", "7")
    shell.ok("workload", "produce", "checked", "--rate", "500", "--duration", "1", "--keys", "0", "--name", "loader")
    told = json.loads(shell.ok("workload", "verify", "checked", "--json").splitlines()[-1])
    assert told["ok"] is True
    assert told["records_in_log"] == told["records_acked"] > 3000
    assert "records/s" in shell.ok("workload", "consume", "checked", "--until-end")
    assert "EXACT" in shell.ok("workload", "verify", "checked")
    ledger = next(iter((shell.data_dir / "workloads" / "checked").glob("*/*.json")))
    said = json.loads(ledger.read_text())
    ledger.write_text(json.dumps({**said, "sent": said["sent"] + 1}))  # as if one more had been acknowledged
    result = shell.run("workload", "verify", "checked", "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout.splitlines()[-1])["lost"] == 1
    assert "NOT EXACT" in result.stdout


def test_workloads_of_kafkas_clients_are_verified_with_what_groups_have_read(shell: Shell) -> None:
    """In this process: a start costs more than the command."""

    def workload(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["workload", *arguments], env=shell.environment(), catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done.output

    workload("produce", "foreign", "--client", "confluent-kafka", "--count", "2000")
    workload("produce", "foreign", "--count", "1000")
    workload("consume", "foreign", "--client", "confluent-kafka", "--until-end")
    workload("consume", "foreign", "--group", "own", "--until-end")
    told = workload("verify", "foreign")
    assert "2 runs sent 3000 records, 3000 acknowledged" in told
    assert "3000 records in the log, 6000 read by members of groups" in told
    assert "files of 9 replicas checked" in told
    assert "EXACT" in told
    assert "are known" in workload("consume", "foreign", "--client", "other", code=2)


def test_what_was_sent_to_a_deleted_topic_is_not_missing_in_its_successor(shell: Shell) -> None:
    shell.ok("workload", "produce", "again", "--count", "500")
    shell.ok("topic", "delete", "again", "--yes")
    shell.ok("workload", "produce", "again", "--count", "300")
    text = shell.ok("workload", "verify", "again")
    assert "1 runs sent 300 records, 300 acknowledged" in text
    assert "left out: 1 runs to a topic of this name that is gone" in text


def test_an_interrupted_workload_says_what_it_waits_for_and_is_verified(shell: Shell) -> None:
    producing = shell.start("workload", "produce", "broken-off", "--rate", "500")
    try:
        assert producing.stdout is not None
        assert "acknowledged" in producing.stdout.readline()
        producing.send_signal(signal.SIGINT)
        _, errors = producing.communicate(timeout=DEADLINE_S)
    finally:
        producing.kill()
        producing.wait()
    assert producing.returncode == 0
    assert "waiting for the outcome of what was sent" in errors
    assert "EXACT" in shell.ok("workload", "verify", "broken-off")


def test_a_second_producer_of_a_name_fences_the_first(shell: Shell) -> None:
    first = shell.start("workload", "produce", "fenced", "--rate", "200", "--name", "only-one")
    try:
        assert first.stdout is not None
        assert "acknowledged" in first.stdout.readline()  # its first figures
        shell.ok("workload", "produce", "fenced", "--count", "100", "--name", "only-one")
        _, errors = first.communicate(timeout=DEADLINE_S)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 1
    assert "FENCED" in errors or "INVALID_PRODUCER_EPOCH" in errors
    assert "Traceback" not in errors
    shell.ok("workload", "verify", "fenced")


def test_brokers_listen_where_they_are_configured_to_or_the_cluster_says_why_not(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "own")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 cannot be had" in shell.fails("cluster", "up", "--port", str(port))
    try:
        # No one else holds it now; where another test takes it nevertheless, the cluster refuses again.
        up = shell.run("cluster", "up", "--brokers", "1", "--port", str(port))
        if up.returncode == 0:
            assert f"bootstrap 127.0.0.1:{port}\n" in up.stdout
            told = json.loads(shell.ok("cluster", "up", "--json"))
            assert told == json.loads(shell.ok("cluster", "status", "--json")) | {"processes": told["processes"]}
            (broker,) = told["brokers"]
            assert (broker["id"], broker["address"], broker["state"]) == (1, f"127.0.0.1:{port}", "running")
            assert told["kafka_bootstrap"] == broker["kafka_address"]
            kafka_port = int(broker["kafka_address"].rpartition(":")[2])
            assert f"not from port {kafka_port + 1} on" in shell.fails(
                "cluster", "up", "--kafka-port", str(kafka_port + 1)
            )
            assert f"not from port {port + 1} on" in shell.fails("cluster", "up", "--port", str(port + 1))
        else:
            assert f"port {port} of 127.0.0.1 cannot be had" in up.stderr
    finally:
        if (shell.data_dir / "cluster.json").exists():
            AsyncLocalCluster.load(shell.data_dir).kill_all()


def test_an_orderly_reboot_costs_nothing(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "own")
    shell.ok("cluster", "up")
    try:
        shell.ok("workload", "produce", "kept", "--count", "500")
        cluster = AsyncLocalCluster.load(shell.data_dir)
        for node in cluster.nodes:  # as the system does it: everyone at the same time, the controller too
            cluster.terminate(node)
        until_sync(lambda: not cluster.any_running(), "all processes have ended", DEADLINE_S, poll_s=0.1)
        forget_boot(shell, 1, 2, 3)
        up = shell.run("cluster", "up")
        assert (up.returncode, up.stderr) == (0, "")
        assert "EXACT" in shell.ok("workload", "verify", "kept")
        assert status(shell)["healthy"]
    finally:
        AsyncLocalCluster.load(shell.data_dir).kill_all()


def test_after_a_crash_of_the_machine_the_cluster_says_what_its_operator_has_to_do(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "own")
    shell.ok("cluster", "up", "--brokers", "1")
    try:
        shell.ok("topic", "create", "orders", "--partitions", "1")
        cluster = AsyncLocalCluster.load(shell.data_dir)
        cluster.kill_all()
        until_sync(lambda: not cluster.any_running(), "all processes are gone", DEADLINE_S, poll_s=0.1)
        forget_boot(shell, 1)
        up = shell.run("cluster", "up")
        assert up.returncode == 0
        assert "no broker may lead orders-0: 'fencepost cluster status' says why" in up.stderr
        told = shell.run("cluster", "status")
        assert told.returncode == 1
        assert "orders-0 has no leader: broker 1, the last in sync, may have lost acknowledged records" in told.stdout
        assert "fencepost topic elect orders 0 --unclean" in told.stdout
    finally:
        AsyncLocalCluster.load(shell.data_dir).kill_all()


def test_the_whole_cluster_goes_down_and_comes_up_with_its_data(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "own")
    shell.ok("cluster", "up", "--brokers", "1")
    try:
        shell.ok("workload", "produce", "kept", "--count", "500")
        shell.ok("cluster", "down")
        assert set(states(shell).values()) == {"down"}
        assert "(or name one with --bootstrap)" in Shell(tmp_path / "none").fails("topic", "list")
        shell.ok("cluster", "up")
        shell.ok("workload", "verify", "kept")
        state = (shell.data_dir / "cluster.json").read_text()
        (shell.data_dir / "cluster.json").unlink()
        assert "holds data already" in shell.fails("cluster", "up")
        (shell.data_dir / "cluster.json").write_text(state)
        shell.ok("cluster", "down", "--remove")
        assert not shell.data_dir.exists()
    finally:
        if (shell.data_dir / "cluster.json").exists():
            AsyncLocalCluster.load(shell.data_dir).kill_all()
