"""What `fencepost cluster status` shows."""

from __future__ import annotations

from rich.console import Console

from fencepost_cli.terminal import table
from fencepost_testing.cluster_status import ClusterStatus
from fencepost_testing.member import is_etcd

_MEGABYTE = 1_000_000
_EXPLAINED = 10  # partitions without a leader, in words
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def duration_text(seconds: float) -> str:
    """The two largest units: 3 d 4 h, 5 min 6 s."""
    whole = int(seconds)
    if whole >= _DAY_S:
        return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"
    if whole >= _HOUR_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    if whole >= _MINUTE_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    return f"{whole} s"


def show_status(status: ClusterStatus, console: Console) -> None:
    console.print(f"Cluster {status.cluster_id or '(no broker answers)'}")
    numbers = ("pid", "uptime", "memory MB", "CPU %")
    roles = ("role",) if any(process.role for process in status.processes) else ()
    processes = table("process", "state", *roles, "address", *numbers, numbers=numbers)
    for process in status.processes:
        up = process.state != "down"
        style = {"running": "green", "down": "red"}.get(process.state, "yellow")
        processes.add_row(
            process.name,
            f"[{style}]{process.state}[/]",
            *([process.role] if roles else []),
            process.address,
            str(process.pid) if up else "",
            duration_text(process.uptime_s) if up else "",
            f"{process.memory_mb:.0f}" if up else "",
            f"{process.cpu_percent:.0f}" if up else "",
        )
    console.print(processes)
    _show_etcd(status, console)
    if not status.partitions:
        return
    where, how_far = ("partition", "leader", "epoch"), ("log end", "high watermark", "MB")
    partitions = table("topic", *where, "replicas", "in sync", "eligible", *how_far, numbers=where + how_far)
    for partition in status.partitions:
        short = len(partition.isr) < len(partition.replicas)
        in_sync = ",".join(map(str, partition.isr)) or "-"
        partitions.add_row(
            partition.topic,
            str(partition.partition),
            str(partition.leader) if partition.leader >= 0 else "[red]none[/]",
            str(partition.leader_epoch),
            ",".join(map(str, partition.replicas)),
            f"[yellow]{in_sync}[/]" if short else in_sync,
            ",".join(map(str, partition.eligible)),
            _known(partition.log_end_offset),
            _known(partition.high_watermark),
            f"{partition.size_bytes / _MEGABYTE:.1f}" if partition.size_bytes >= 0 else "?",
        )
    console.print(partitions)
    for partition in status.partitions:
        for broker, why in partition.failures.items():
            told = (
                f"broker {broker} cannot serve {partition.topic}-{partition.partition} now, and goes on trying: {why}"
            )
            console.print(told, style="red", markup=False, soft_wrap=True)
    leaderless = [partition for partition in status.partitions if partition.leader < 0]
    for partition in leaderless[:_EXPLAINED]:
        console.print(partition.why_leaderless(), style="red", markup=False, soft_wrap=True)
    if len(leaderless) > _EXPLAINED:
        console.print(f"and {len(leaderless) - _EXPLAINED} more partitions without a leader", style="red")


def _show_etcd(status: ClusterStatus, console: Console) -> None:
    """Of a cluster with several controllers: who decides, and how etcd is."""
    members = [process for process in status.processes if is_etcd(process.name)]
    if not members:
        return
    if status.active_controller:
        console.print(f"Active: {status.active_controller}, controller epoch {status.controller_epoch}")
    else:
        console.print("No controller that runs is active: leaders serve on, nothing is elected", style="red")
    for process in members:
        if process.trouble:
            console.print(f"{process.name}: {process.trouble}", style="red", markup=False, soft_wrap=True)
    serving = [process for process in members if process.serves]
    told = f"etcd: {len(serving)} of {len(members)} members serve"
    if serving:
        told += f", version {serving[0].etcd_version}, {serving[0].etcd_size_bytes / _MEGABYTE:.1f} MB"
    console.print(told, style=None if len(serving) == len(members) else "yellow")


def _known(offset: int) -> str:
    return str(offset) if offset >= 0 else "?"
