"""A picture of the benchmark of many of everything: what grows with the number of producers, partitions, connections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fencepost_cli.many import Step
from fencepost_cli.plotting import label, save, side_by_side


def draw(steps: Sequence[Step], file: Path) -> None:
    """Raises CommandFailed where it cannot."""
    figure, (rates, costs, rest) = side_by_side(3)
    for what in dict.fromkeys(step.what for step in steps):
        of_it = [step for step in steps if step.what == what]
        numbers = [max(step.number, 1) for step in of_it]  # a logarithmic axis has no 0
        rates.plot(numbers, [step.acks_per_s for step in of_it], marker="o", label=what)
        costs.plot(numbers, [step.brokers_cpu_ms_per_ack for step in of_it], marker="o", label=f"brokers: {what}")
        costs.plot(
            numbers, [step.client_cpu_ms_per_ack for step in of_it], marker="s", linestyle=":", label=f"client: {what}"
        )
        rest.plot(numbers, [step.broker_rss_mb for step in of_it], marker="o", label=f"MB: {what}")
        rest.plot(
            numbers, [step.rest_cpu_percent for step in of_it], marker="s", linestyle=":", label=f"% of a core: {what}"
        )
    for axes in (rates, costs, rest):
        axes.set_xscale("log")
    label(rates, "how many", "acknowledgements a second")
    label(costs, "how many", "CPU of an acknowledgement, ms")
    label(rest, "how many", "a broker's memory under load, its CPU at rest")
    save(figure, file)
