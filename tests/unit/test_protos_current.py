"""The generated stubs are what the .proto files say."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "proto" / "fencepost_proto" / "protocol" / "v1"


def test_generated_code_is_current(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "protos", tmp_path], capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    stored = {path.name: path.read_text() for path in GENERATED.iterdir() if path.is_file()}
    assert fresh.keys() == stored.keys()
    stale = [name for name in fresh if fresh[name] != stored[name]]
    assert not stale, f"run ./scripts/protos: {stale}"
