"""A program whose component does what its configuration says, for the tests of a process's life.

python process_of_nothing.py CONFIG.toml
"""

from __future__ import annotations

import asyncio
import gc
import sys
from dataclasses import dataclass
from pathlib import Path

from fencepost_proto.protocol.errors import InvariantBroken
from fencepost_proto.runtime.config import LOG_LEVELS, check_settings, setting
from fencepost_proto.runtime.failure import Failure
from fencepost_proto.runtime.process import Program, main


class CannotBe(Exception):
    """Its surroundings will not have it."""


ERRORS = {"": None, "cannot be": CannotBe("not here"), "disk": OSError("the disk"), "fault": InvariantBroken("1 is 2")}
DURING = ("make", "start", "run", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingConfig:
    data_dir: str = setting(minimum=1)
    log_level: str = setting("INFO", choices=LOG_LEVELS)
    number: int = setting(1)
    error: str = setting("", choices=tuple(ERRORS))
    during: str = setting("run", choices=DURING)
    hangs_in_start: bool = False

    def __post_init__(self) -> None:
        check_settings(self)


class Nothing:
    """Writes down what is done with it, in the file `told` of its data folder."""

    def __init__(self, config: NothingConfig) -> None:
        self.address = ""
        self.metrics_address = ""
        self.failure = Failure("nothing")
        self._config = config
        self._goes_wrong("make")

    def _goes_wrong(self, during: str) -> None:
        error = ERRORS[self._config.error]
        if during == self._config.during and error is not None:
            raise error

    def _tell(self, what: str) -> None:
        with (Path(self._config.data_dir) / "told").open("a") as file:
            file.write(f"{what}\n")
        with (Path(self._config.data_dir) / "collections").open("a") as file:
            file.write(f"{gc.isenabled()}\n")

    async def start(self) -> None:
        self._tell("start")
        if self._config.hangs_in_start:
            await asyncio.Event().wait()
        self._goes_wrong("start")
        self.address = "nowhere:1"
        if self._config.during == "run":
            error = ERRORS[self._config.error]
            if error is not None:
                asyncio.get_running_loop().call_soon(self.failure.report, error)

    async def stop(self, clean: bool) -> None:
        self._tell("stop clean" if clean else "stop")
        self._goes_wrong("stop")


def program(refusals: tuple[type[Exception], ...] = ()) -> Program[NothingConfig]:
    return Program(
        package="nothing",
        kind="nothing",
        description="Do nothing.",
        example='  data_dir = "/tmp/nothing"',
        config=NothingConfig,
        id_of=lambda config: config.number,
        make=Nothing,
        cannot_start=(CannotBe,),
        refusals=refusals,
    )


if __name__ == "__main__":
    sys.exit(main(program()))
