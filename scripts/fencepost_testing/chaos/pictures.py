"""The pictures of a report, as PNG: latency and throughput over time with the faults shaded, and what is wrong, if anything.

Needs matplotlib, which is there with the development dependencies.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fencepost_testing.chaos.faults import Nemesis
from fencepost_testing.chaos.measure import Measure
from fencepost_testing.chaos.result import ChaosResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 50_000  # of a scatter: of more, every second, third … is shown
_SIZE_INCHES = (12.0, 5.5)
_THINNEST_S = 0.15  # of a fault in its lane, to be seen
_COLOURS = {
    Nemesis.BROKERS: "#d62728",
    Nemesis.CONTROLLER: "#9467bd",
    Nemesis.ETCD: "#2ca02c",
    Nemesis.NETWORK: "#ff7f0e",
    Nemesis.CLIENTS: "#7f7f7f",
    Nemesis.OPERATOR: "#17becf",
    Nemesis.DISKS: "#8c564b",
    Nemesis.ELECTIONS: "#e377c2",
    Nemesis.MEMBERS: "#bcbd22",
}


class NoPictures(Exception):
    """Why there are none, in words for the report."""


def draw(result: ChaosResult, report: Path) -> list[Path]:
    """Write the pictures into the report's folder. Raises NoPictures."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise NoPictures("matplotlib is not installed (pip install matplotlib)") from None
    mpl.use("Agg")
    measure = result.measure
    if measure is None or not measure.latency:
        raise NoPictures("nothing was acknowledged")
    drawn = [_latency(result, measure, report / "latency.png"), _throughput(result, measure, report / "throughput.png")]
    if result.history is not None and any(finding.offsets for finding in result.history.findings):
        drawn.append(_wrong(result, report / "wrong.png"))
    return drawn


def _figure(title: str) -> tuple[Any, Axes, Axes]:
    """The figure, the axes for what is shown, and those for the faults below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes, lanes = figure.subplots(2, sharex=True, height_ratios=(6, 1))
    axes.set_title(title, loc="left")
    axes.grid(visible=True, alpha=0.25)
    return figure, axes, lanes


def _show_faults(axes: Axes, lanes: Axes, result: ChaosResult) -> None:
    """A lane for each nemesis, and its colour thinly over what is shown."""
    for lane, nemesis in enumerate(Nemesis):
        spans = [
            (happened.began_at - result.started_at, happened.ended_at - happened.began_at)
            for happened in result.happened
            if happened.fault.nemesis is nemesis
        ]
        visible = [(begin, max(length, _THINNEST_S)) for begin, length in spans]
        lanes.broken_barh(visible, (lane - 0.4, 0.8), color=_COLOURS[nemesis], linewidth=0)
        for begin, length in spans:
            axes.axvspan(begin, begin + length, color=_COLOURS[nemesis], alpha=0.06, linewidth=0)
    lanes.set_yticks(range(len(Nemesis)), [nemesis.value for nemesis in Nemesis], fontsize=8)
    lanes.set_ylim(len(Nemesis) - 0.5, -0.5)
    lanes.set_xlabel("seconds since the start; below the curves, the faults of each nemesis")


def _latency(result: ChaosResult, measure: Measure, path: Path) -> Path:
    figure, axes, lanes = _figure(f"Latency of {len(measure.latency)} acknowledged sends (seed {result.options.seed})")
    step = 1 + len(measure.latency) // MAX_POINTS
    axes.scatter(
        measure.sent_at[::step],
        [1000 * seconds for seconds in measure.latency[::step]],
        s=3,
        color="#1f77b4",
        linewidths=0,
        label="one send, at the time it was sent" if step == 1 else f"one of {step} sends, at the time it was sent",
    )
    axes.set_yscale("log")
    axes.set_ylabel("ms until the acknowledgement")
    _finish(figure, axes, lanes, result, path)
    return path


def _throughput(result: ChaosResult, measure: Measure, path: Path) -> Path:
    figure, axes, lanes = _figure(f"Records a second (seed {result.options.seed})")
    counts = {
        "acknowledged": (measure.acked_in_second, "#1f77b4"),
        "read, by all consumers": (measure.read_in_second, "#2ca02c"),
        "failed for certain": (measure.failed_in_second, "#8c564b"),
        "outcome unknown": (measure.unknown_in_second, "#e377c2"),
    }
    end = 1 + max(second for counter, _ in counts.values() for second in counter or (0,))
    for label, (counter, colour) in counts.items():
        if counter:
            axes.step(range(end), [counter[second] for second in range(end)], where="post", color=colour, label=label)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("records a second")
    _finish(figure, axes, lanes, result, path)
    return path


def _wrong(result: ChaosResult, path: Path) -> Path:
    """Where in the logs the first findings of each kind lie."""
    figure, axes, lanes = _figure("Offsets of what is wrong (the first findings of each kind)")
    lanes.remove()
    assert result.history is not None
    kinds = sorted({finding.anomaly.value for finding in result.history.findings if finding.offsets})
    for row, kind in enumerate(kinds):
        offsets = [o for finding in result.history.findings if finding.anomaly.value == kind for o in finding.offsets]
        axes.scatter(offsets, [row] * len(offsets), s=30, color="#d62728")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("offset")
    figure.savefig(path)
    return path


def _finish(figure: Any, axes: Axes, lanes: Axes, result: ChaosResult, path: Path) -> None:
    _show_faults(axes, lanes, result)
    for each in (axes, lanes):
        each.axvline(result.faults_end_s, color="black", linewidth=0.8, linestyle="--", label="no more faults")
    axes.set_xlim(left=0)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, fontsize=8, frameon=False)  # above: it hides nothing
    figure.savefig(path)
