"""Runs the command `fencepost` as its users do: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

COMMAND = [sys.executable, "-c", "from fencepost_cli.main import main; main()"]
TIMEOUT_S = 80.0


@dataclass(frozen=True)
class Shell:
    """Commands on the cluster in one folder."""

    data_dir: Path
    timeout_s: float = TIMEOUT_S
    extra: Mapping[str, str] = field(default_factory=dict)  # of the environment

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Whatever its exit code. Nothing a user does may end in a traceback."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            input=stdin,
            capture_output=True,
            timeout=self.timeout_s,
            check=False,
            env=self.environment(),
        )
        result = subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
        assert "Traceback" not in result.stderr, result.stderr
        return result

    def ok(self, *arguments: str, stdin: bytes = b"") -> str:
        """Standard output of a command that must succeed."""
        result = self.run(*arguments, stdin=stdin)
        assert result.returncode == 0, f"{arguments}: exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def fails(self, *arguments: str, code: int = 1, stdin: bytes = b"") -> str:
        """Standard error of a command that must fail with this exit code."""
        result = self.run(*arguments, stdin=stdin)
        assert result.returncode == code, (
            f"{arguments}: exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
        )
        return result.stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Without waiting for its end; its standard input is a pipe that stays open."""
        return subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(),
        )

    def environment(self) -> dict[str, str]:
        return {**os.environ, "FENCEPOST_DATA_DIR": str(self.data_dir), **self.extra}
