"""The command `fencepost`, also as `python -m fencepost_cli`. An install of the client alone says what it lacks for it."""

from __future__ import annotations

import sys

OF_EXTRAS = ("click", "psutil", "rich", "typer", "uvloop")


def main() -> None:
    """Run the command line, or say what has to be installed for it."""
    try:
        from fencepost_cli.main import main as run
    except ModuleNotFoundError as error:
        if error.name not in OF_EXTRAS:
            raise
        print(f"fencepost: {error.name} is missing: pip install 'fencepost[server,cli]'", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
