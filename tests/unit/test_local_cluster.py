"""The local cluster's own machinery, over stand-ins: a few lines of Python that write process.json and wait."""

from __future__ import annotations

import contextlib
import fcntl
import json
import operator
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import psutil
import pytest

from fencepost_testing import cluster_folder, processes
from fencepost_testing.cluster_watch import ClusterWatch
from fencepost_testing.faults import Faults
from fencepost_testing.local_cluster import CONTROLLER, ClusterError, LocalCluster, Settings, to_toml
from fencepost_testing.ports import PortReservation
from fencepost_testing.processes import NetworkPlace, ProcessRef, WatchdogFailed, spawn
from fencepost_testing.waiting import until_sync

STAND_IN = """
    import json, os, signal, sys, tomllib
    config = tomllib.load(open(sys.argv[-1], "rb"))
    if config.get("log_level") == "broken":
        sys.exit("log_level: broken is not a level")
    refused = config.get("log_level") == "refused"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    path = os.path.join(config["data_dir"], "process.json")
    with open(path + ".tmp", "w") as file:
        json.dump({"pid": os.getpid(), "address": config["listen"], "kind": "broker", "id": 1}, file)
    os.replace(path + ".tmp", path)
    if refused:
        sys.exit("the controller refused this broker")
    while True:
        signal.pause()
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Processes of clusters made in a test run this program instead of brokers and controllers."""
    program = tmp_path / "stand_in.py"
    program.write_text(textwrap.dedent(STAND_IN))

    def spawn_stand_in(
        _arguments: list[str], config_file: Path, log_file: Path, place: NetworkPlace | None
    ) -> tuple[ProcessRef, subprocess.Popen[bytes]]:
        return spawn([str(program)], config_file, log_file, place)

    monkeypatch.setattr(cluster_folder, "spawn", spawn_stand_in)
    monkeypatch.setattr(cluster_folder, "fork_server", lambda: None)
    return program


def start_all(cluster: LocalCluster) -> None:
    cluster.start(*cluster.members)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pids: list[int]) -> None:
    until_sync(lambda: [pid for pid in pids if not gone(pid)], f"processes {pids} end", holds=operator.not_)


def test_settings_are_written_as_toml() -> None:
    path = 'C:\\a "quoted" folder/ü 🚀\n\x7f\x01'
    settings: Settings = {"path": path, "count": -3, "share": 0.5, "on": True}
    assert tomllib.loads(to_toml(settings)) == settings


def test_started_processes_are_ready_and_known_to_the_next_command(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "c", brokers=2, owned=False)
    start_all(cluster)
    try:
        later = LocalCluster.load(tmp_path / "c")
        assert later.bootstrap == cluster.bootstrap
        assert later.broker_ids == [1, 2]
        assert [later.pid(node) for node in ("controller", 1, 2)] == [
            cluster.pid(node) for node in ("controller", 1, 2)
        ]
        with pytest.raises(ClusterError, match="holds a cluster already"):
            LocalCluster(tmp_path / "c")
    finally:
        cluster.down()
    assert not LocalCluster.load(tmp_path / "c").any_running()


def test_folders_that_the_processes_could_not_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="its name is not UTF-8"):
        LocalCluster(tmp_path / "\udcff")
    with pytest.raises(ClusterError, match="and 480 is the most"):
        LocalCluster(tmp_path / ("d" * 200) / ("d" * 200) / ("d" * 200))
    (tmp_path / "file").write_text("")
    with pytest.raises((ClusterError, OSError), match="file"):
        LocalCluster(tmp_path / "file" / "c")


@pytest.mark.parametrize("name", ["a 🚀", "[red]x[/red]", "two\nlines", "100% $HOME #1", 'my "own" data\'s'])
def test_a_folder_may_have_any_name_that_is_text(tmp_path: Path, name: str) -> None:
    cluster = LocalCluster(tmp_path / name, brokers=1)
    try:
        start_all(cluster)
        assert cluster.running(1)
    finally:
        cluster.close()
    assert not cluster.any_running()


def test_a_cluster_that_cannot_be_made_is_refused_by_its_value(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ClusterError, match="file cannot hold a cluster: it is no folder"):
        LocalCluster(file)
    with pytest.raises(ClusterError, match="cannot hold a cluster: Not a directory"):
        LocalCluster(file / "c")
    with pytest.raises(ClusterError, match="directory=3 is no path of a folder; brokers=3 says how many"):
        LocalCluster(3)  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match="brokers='3': must be a whole number"):
        LocalCluster(brokers="3")  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match=r"controllers=1.0: must be a whole number"):
        LocalCluster(controllers=1.0)  # type: ignore[arg-type]


def test_copied_cluster_folder(tmp_path: Path) -> None:
    """yugabyte-db issue 3753: a folder that was copied, or moved, works on the data of the original."""
    original = LocalCluster(tmp_path / "a", brokers=1, owned=False)
    start_all(original)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    copy = LocalCluster.load(tmp_path / "copy")
    try:
        assert not copy.any_running()  # the processes that its file remembers are the original's
        start_all(copy)
        assert tomllib.loads(copy.member(1).config_file.read_text())["data_dir"] == str(tmp_path / "copy/broker-1")
        assert {copy.pid(1), copy.pid("controller")}.isdisjoint({original.pid(1), original.pid("controller")})
        copy.down()
        assert original.running(1)
    finally:
        copy.kill_all()
        original.down()
    (tmp_path / "a").rename(tmp_path / "moved")
    moved = LocalCluster.load(tmp_path / "moved")
    try:
        start_all(moved)
        assert json.loads((tmp_path / "moved/broker-1/process.json").read_text())["pid"] == moved.pid(1)
        assert not (tmp_path / "a").exists()
    finally:
        moved.down()


def test_clock_step(tmp_path: Path) -> None:
    """psutil issues 2526 and 1724: creation times since 1970 move when the clock is set; processes counted as gone, and
    their data were removed."""
    cluster = LocalCluster(tmp_path / "c", brokers=1, owned=False)
    start_all(cluster)
    state = json.loads((tmp_path / "c/cluster.json").read_text())
    for member in state["members"]:
        member["create_time_s"] -= 3600
    (tmp_path / "c/cluster.json").write_text(json.dumps(state))
    try:
        later = LocalCluster.load(tmp_path / "c")
        assert later.running(1)
        with pytest.raises(ClusterError, match=r"controller of the cluster in .* still runs"):
            later.remove()
    finally:
        cluster.down()


def test_a_folder_that_an_unknown_process_holds_is_not_removed(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "c", brokers=1)
    lock = os.open(tmp_path / "c/broker-1/.lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ClusterError, match=r"broker 1 of the cluster in .* still runs"):
            cluster.remove()
        assert (tmp_path / "c/controller").exists()
    finally:
        os.close(lock)
        cluster.close()
    cluster.remove()
    assert not (tmp_path / "c/broker-1").exists()


def test_a_start_that_fails_leaves_nothing_running_that_it_started(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "c", brokers=2, owned=False)
    cluster.start("controller")
    try:
        cluster.broker_overrides["log_level"] = "broken"
        with pytest.raises(ClusterError, match="broker 1 ended with exit code 1"):
            start_all(cluster)
        assert [node for node in cluster.nodes if cluster.running(node)] == ["controller"]  # it ran before
    finally:
        cluster.down()


def test_up_without_brokers(tmp_path: Path) -> None:
    """strimzi-kafka-operator issue 9108: "up" was reported though every broker had ended by then."""
    cluster = LocalCluster(tmp_path / "c", brokers=2, broker_overrides={"log_level": "refused"}, owned=False)

    with pytest.raises(ClusterError, match=r"(?s)broker [12] ended.*the controller refused this broker"):
        cluster.up()
    assert not cluster.any_running()


def test_watchdog_cannot_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """rules_python PR 863: where packages come by PYTHONPATH only, the watchdog ended at its start, unnoticed."""
    cluster = LocalCluster(tmp_path / "c", brokers=1)
    monkeypatch.setattr(processes, "import_path", lambda: str(tmp_path))
    monkeypatch.setattr(sys, "executable", sys._base_executable)  # type: ignore[attr-defined] # without our packages
    with pytest.raises(
        WatchdogFailed, match="the watchdog that ends processes with their owner ended with exit code 1"
    ):
        start_all(cluster)
    assert not cluster.any_running()


def test_ports_stay_the_same_over_a_kill_and_a_restart(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "c", brokers=1)
    try:
        start_all(cluster)
        address, pid = cluster.member(1).address, cluster.pid(1)
        cluster.kill(1)
        assert cluster.wait_gone(1) == -9
        assert not cluster.running(1)
        cluster.restart(1)
        assert cluster.pid(1) != pid
        assert cluster.member(1).address == address
        assert json.loads((tmp_path / "c/broker-1/process.json").read_text())["address"] == address
    finally:
        cluster.close()


def test_a_reserved_port_is_given_to_no_one_and_can_be_listened_on() -> None:
    reservation = PortReservation()
    try:
        with socket.socket() as other, pytest.raises(OSError):  # noqa: PT011 - any errno will do
            other.bind(("127.0.0.1", reservation.port))
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", reservation.port))
            server.listen()
    finally:
        reservation.release()


def test_a_cluster_that_was_down_moves_from_a_port_that_another_process_took(tmp_path: Path) -> None:
    holding = LocalCluster(tmp_path / "c", brokers=2)  # never started: it keeps the ports from all others
    cluster = LocalCluster.load(tmp_path / "c")
    before = [cluster.member(node).port for node in cluster.nodes]
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", before[0]))
        squatter.listen()
        try:
            start_all(cluster)
            after = [cluster.member(node).port for node in cluster.nodes]
            assert after[0] != before[0]
            assert after[1:] == before[1:]
            for broker in (1, 2):
                assert f'"127.0.0.1:{after[0]}"' in cluster.member(broker).config_file.read_text()
            assert LocalCluster.load(tmp_path / "c").member("controller").port == after[0]
        finally:
            cluster.down()
            holding.close()


def test_pause_resume_and_stop(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "c", brokers=1)
    try:
        start_all(cluster)
        process = cluster.member(1).process
        assert process is not None
        cluster.pause(1)
        until_sync(process.paused, "it is paused")
        cluster.resume(1)
        until_sync(lambda: not process.paused(), "it goes on")
        cluster.pause(1)
        assert cluster.stop(1) == 0  # a paused process is woken to stop
        with pytest.raises(ClusterError, match="broker 1 is not running"):
            cluster.kill(1)
        with pytest.raises(ClusterError, match="no broker 7"):
            cluster.kill(7)
    finally:
        cluster.close()


def test_a_kill_by_the_faults_is_one_that_was_asked_for_and_has_ended_when_it_returns(tmp_path: Path) -> None:
    with contextlib.closing(LocalCluster(tmp_path / "c", brokers=2)) as cluster:
        start_all(cluster)
        watch = ClusterWatch(cluster)
        with cluster.faults.kill(1) as killed:
            assert not cluster.running(1)
            assert (killed.fired, killed.is_set) == (1, False)
        cluster.aio.faults.set("kill", {"target": CONTROLLER})  # as over HTTP
        assert [cluster.running(node) for node in cluster.nodes] == [False, False, True]
        assert watch.problems() == []
        start_all(cluster)
        os.kill(cluster.pid(1), signal.SIGKILL)
        cluster.wait_gone(1)
        assert "broker 1 ended by itself with exit code -9" in watch.problems()[0]


def test_the_processes_of_a_folder_with_a_relative_path_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(LocalCluster("c", brokers=1)) as cluster:
        start_all(cluster)
        faults = Faults("c")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        with faults.pause(1):
            assert cluster.paused(1)
        faults.kill(1)
        cluster.wait_gone(1)


def test_a_cluster_that_was_closed_or_has_no_faults_has_a_timeline_all_the_same() -> None:
    for faults in (True, False):
        cluster = LocalCluster(brokers=1, faults=faults)
        watch = ClusterWatch(cluster)
        with contextlib.closing(cluster):
            start_all(cluster)
            cluster.kill(1)
        assert [happening.what for happening in watch.timeline()][-1] == "broker 1 killed"
        assert watch.log_ends(5) == {}
        assert cluster.logs() == {CONTROLLER: "", 1: ""}
        assert watch.problems() == []


def test_a_process_that_ends_between_the_signals_of_a_clean_stop_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in chaos on a busy machine: SIGTERM had ended the controller before it could be sent SIGCONT."""
    cluster = LocalCluster(tmp_path / "c", brokers=1)
    start_all(cluster)
    send = ProcessRef.send

    def send_and_wait(process: ProcessRef, number: signal.Signals) -> bool:
        sent = send(process, number)
        if number is signal.SIGTERM:
            until_sync(lambda: gone(process.pid), "the end of the process")
        return sent

    try:
        monkeypatch.setattr(ProcessRef, "send", send_and_wait)
        assert cluster.stop(1) == 0
    finally:
        cluster.close()


def test_a_process_that_dies_at_its_start_is_reported_with_its_log(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "c", brokers=1, broker_overrides={"log_level": "broken"})
    try:
        with pytest.raises(ClusterError, match=r"(?s)broker 1 ended with exit code 1.*broken is not a level"):
            start_all(cluster)
    finally:
        cluster.close()


def test_a_process_whose_program_is_just_being_started_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    me = psutil.Process()
    shown = [[], me.cmdline()]  # the kernel shows no command line for a moment
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _: shown.pop(0))
    assert ProcessRef(me.pid, me.create_time(), shown[1][-1]).alive()
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _: [])
    assert not ProcessRef(me.pid, me.create_time(), "broker.toml").alive()


def test_another_process_with_the_same_pid_is_never_signalled(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "c", brokers=1)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "broker.toml"])
    try:
        created = psutil.Process(bystander.pid).create_time()
        member = cluster.member(1)
        for ref in (
            ProcessRef(bystander.pid, created - 60, "broker.toml"),  # an older process had this number
            ProcessRef(bystander.pid, created, str(member.config_file)),  # it runs something else
        ):
            member.process = ref
            assert not cluster.running(1)
            with pytest.raises(ClusterError, match="not running"):
                cluster.kill(1)
            cluster.kill_all()
        assert bystander.poll() is None
        assert ProcessRef(bystander.pid, created, "broker.toml").alive()
    finally:
        bystander.kill()
        bystander.wait()
        cluster.close()


OWNER = """
    import asyncio, os, sys, time
    from pathlib import Path
    from fencepost_testing import cluster_folder, local_cluster, processes
    cluster_folder.fork_server = lambda: None
    cluster_folder.spawn = lambda _, config, log, place: processes.spawn([sys.argv[2]], config, log, place)
    cluster = local_cluster.LocalCluster(sys.argv[1], brokers=2)
    cluster.start(*cluster.members)
    print(*(cluster.pid(node) for node in cluster.members), flush=True)
    if sys.argv[3] == "wait":
        time.sleep(60)
    raise SystemExit(3)
"""


@pytest.mark.parametrize("end", ["exit", "SIGKILL", "SIGTERM", "SIGINT"])
def test_an_owned_cluster_dies_with_its_owner(tmp_path: Path, stand_in: Path, end: str) -> None:
    arguments = [str(tmp_path / "c"), str(stand_in), "exit" if end == "exit" else "wait"]
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) == 3
        if end != "exit":
            assert not any(gone(pid) for pid in pids)
            owner.send_signal(getattr(__import__("signal"), end))
        owner.wait(timeout=20)
    wait_until_gone(pids)


@pytest.mark.parametrize("keep", [False, True])
def test_a_temporary_folder_goes_with_its_cluster_unless_it_is_to_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cluster = LocalCluster(brokers=1, keep=keep)
    assert cluster.directory.parent == tmp_path
    start_all(cluster)
    pids = [cluster.pid(node) for node in cluster.nodes]
    cluster.close()
    assert all(gone(pid) for pid in pids)
    assert cluster.directory.exists() is keep
    cluster.close()  # once more is as good
    with pytest.raises(ClusterError, match="needs a folder of its own"):
        LocalCluster(owned=False)


TEMPORARY = """
    import asyncio, os, sys
    from fencepost_testing import LocalCluster, cluster_folder, processes
    cluster_folder.fork_server = lambda: None
    cluster_folder.spawn = lambda _, config, log, place: processes.spawn([sys.argv[1]], config, log, place)
    cluster = LocalCluster(brokers=1)
    cluster.start(*cluster.members)
    if os.fork() == 0:
        sys.exit(0)  # a fork ends as any program does, and the cluster is not its own
    os.wait()
    assert cluster.running(1) and cluster.directory.exists()
    print(*(cluster.pid(node) for node in cluster.members), flush=True)
    raise SystemExit(3)
"""


def test_a_temporary_cluster_that_no_one_closes_ends_with_the_program(tmp_path: Path, stand_in: Path) -> None:
    folders = tmp_path / "tmp"
    folders.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TEMPORARY), str(stand_in)],
        env={**os.environ, "TMPDIR": str(folders)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    wait_until_gone([int(word) for word in done.stdout.split()])
    assert list(folders.iterdir()) == []


def test_a_damaged_state_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"version": 1, "members": [{"node": "x"}]}')
    with pytest.raises(ClusterError, match=r"cluster\.json is not a cluster's state"):
        LocalCluster.load(tmp_path)
    with pytest.raises(ClusterError, match="no cluster in"):
        LocalCluster.load(tmp_path / "nothing")


def test_no_reserved_socket_reaches_the_processes(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "c", brokers=1)
    try:
        start_all(cluster)
        open_files = {os.readlink(link) for link in Path(f"/proc/{cluster.pid(1)}/fd").iterdir()}
        assert not [name for name in open_files if name.startswith("socket:")]
    finally:
        cluster.close()
