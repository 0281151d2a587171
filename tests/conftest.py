"""For all tests, wherever they are run from."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

# No limit on the time of one example: on a busy machine any may take long. pytest-timeout bounds the whole test.
settings.register_profile("fencepost", deadline=None)
settings.load_profile("fencepost")

pytest_plugins = [
    "fencepost_testing.pytest_plugin",  # by its name: a checkout's metadata may be older than the plugin
    "pytester",
]


def pytest_configure() -> None:
    """A runner in the background may have been told to ignore Ctrl-C, and its children inherit that; these tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-transcripts", action="store_true", help="write tests/unit/transcripts as the decisions are today"
    )


@pytest.fixture(scope="session")
def rewrite_transcripts(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rewrite-transcripts"))
