"""What every picture of a benchmark has in common. Needs matplotlib, a tool of development."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fencepost_testing.failures import CommandFailed

_INCHES = (4.5, 4.2)  # of one picture of those side by side


def side_by_side(count: int) -> tuple[Any, list[Any]]:
    """A figure, and the axes of `count` pictures. Raises CommandFailed where matplotlib is missing."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise CommandFailed(f"a plot needs matplotlib: {error}") from error
    mpl.rcParams["svg.hashsalt"] = "fencepost"  # the same figures make the same file
    width, height = _INCHES
    figure, axes = pyplot.subplots(1, count, figsize=(width * count, height), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def label(axes: Any, across: str, up: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def save(figure: Any, file: Path) -> None:
    """Write it, and forget it. Raises CommandFailed where it cannot be written."""
    from matplotlib import pyplot

    try:
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{file}: {error}") from error
    finally:
        pyplot.close(figure)
