"""A picture of the benchmark of many partitions: what grows with their number. Needs matplotlib, a tool of development.

`python -m fencepost_cli.scale_plot OUT.svg OUTPUT...` draws what several runs of `bench --scale --json` have printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fencepost_cli.scale import ScaleResult
from fencepost_testing.failures import CommandFailed

_INCHES = (9.0, 4.2)


def draw(results: Sequence[ScaleResult], file: Path) -> None:
    """Raises CommandFailed where it cannot."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise CommandFailed(f"a plot needs matplotlib: {error}") from error
    mpl.rcParams["svg.hashsalt"] = "fencepost"  # the same figures make the same file
    figure, (times, writes) = pyplot.subplots(1, 2, figsize=_INCHES, layout="constrained")
    sizes = [result.partitions for result in results]
    for number, what in enumerate(one.what for one in results[0].disturbances):
        of_it = [result.disturbances[number] for result in results]
        times.plot(sizes, [one.in_sync_s for one in of_it], marker="o", label=f"in sync: {what}")
        writes.plot(sizes, [one.slowest_write_s for one in of_it], marker="o", label=what)
    killed = [result.disturbances[0].leaders_s for result in results]
    times.plot(sizes, killed, marker="s", linestyle="--", label="all led after a kill")
    times.plot(sizes, [result.up_s for result in results], marker="^", linestyle=":", label="cluster up")
    _label(times, "seconds until all is well")
    _label(writes, "slowest write to a partition with a leader, s")
    try:
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{file}: {error}") from error
    finally:
        pyplot.close(figure)


def _label(axes: Any, what: str) -> None:
    axes.set_xlabel("partitions, three replicas each")
    axes.set_ylabel(what)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _read(file: Path) -> list[ScaleResult]:
    """The results in the last line of a run's output."""
    return [ScaleResult.from_json(one) for one in json.loads(file.read_text().splitlines()[-1])["scale"]]


if __name__ == "__main__":
    runs = [result for name in sys.argv[2:] for result in _read(Path(name))]
    draw(sorted(runs, key=lambda result: result.partitions), Path(sys.argv[1]))
