"""The command line as users have it, with a folder and an environment of its own."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from etl.cli import command_line
from etl.cli.session import Wiring
from etl.sandbox.api import READ_KEY

COMMAND = (sys.executable, "-m", "etl")
AT_A_FIXED_TIME = (sys.executable, "-m", "tests.support.frozen")
HARMLESS = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
"""Runs a command for which file modes count, even root's."""
ROOT = Path(__file__).parents[2]
PATIENCE_S = 60


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    exit_code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """Return what stdout has; fail unless that is JSON and nothing else."""
        return json.loads(self.stdout)


@dataclass(frozen=True)
class Program:
    """Runs commands in `folder`; they see the variables of `environment` and no others."""

    folder: Path
    environment: dict[str, str]
    wiring: Wiring | None = None
    """Replaces the clock, the pauses or the way of fetching of what is called in this process."""

    def run(self, *arguments: str | Path, stdin: str = "") -> Done:
        """Run a command as a process."""
        return self._run(COMMAND, *arguments, stdin=stdin)

    def run_at(self, moment: datetime, *arguments: str | Path) -> Done:
        """Run a command as a process whose clock shows `moment` from its start to its end."""
        frozen = self.given(PYTHONPATH=str(ROOT))
        return frozen._run(AT_A_FIXED_TIME, moment.isoformat(), *arguments)

    def _run(self, command: tuple[str, ...], *arguments: str | Path, stdin: str = "") -> Done:
        done = subprocess.run(
            [*command, *arguments],
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE_S,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def run_by(self, prefix: Sequence[str], *arguments: str | Path) -> Done:
        """Run a command as a process through another one that takes something from it."""
        return self._run((*prefix, *COMMAND), *arguments)

    def call(self, *arguments: str | Path) -> Done:
        """Run a command within this process, which is faster by a second."""
        stdout, stderr = _output(), _output()
        with (
            self._surroundings(*arguments),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            exit_code = command_line.main(wiring=self.wiring)
        return Done(exit_code, _text(stdout), _text(stderr))

    @contextlib.contextmanager
    def _surroundings(self, *arguments: str | Path) -> Iterator[None]:
        """Put our process into the place of one that was started for the command."""
        log = logging.getLogger()
        handlers, level = log.handlers[:], log.level
        with (
            mock.patch.dict(os.environ, self.environment, clear=True),
            mock.patch.object(sys, "argv", ["result-archiver", *map(str, arguments)]),
            contextlib.chdir(self.folder),
        ):
            yield
        log.handlers[:], log.level = handlers, level

    @contextlib.contextmanager
    def started(self, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
        """Start a command, and kill it if it is not over at the end of the context."""
        with subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def given(self, **variables: str) -> "Program":
        """Return the program with further variables, such as RESULT_ARCHIVER__API__ATTEMPTS."""
        return replace(self, environment=self.environment | variables)

    def wired(self, wiring: Wiring) -> "Program":
        """Return the program with parts of a pass replaced where it is called in this process."""
        return replace(self, wiring=wiring)

    def write(self, name: str, text: str) -> Path:
        """Write a file into the program's folder, and return its path."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


def _output() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n", write_through=True)


def _text(output: io.TextIOWrapper) -> str:
    output.seek(0)
    return output.read()


def bare_program(folder: Path) -> Program:
    """Return the program as it is without a key and without any setting."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return Program(folder, {"PATH": os.defpath, "HOME": str(home), "LANG": "C.UTF-8"})


def program(folder: Path, database_url: str, api_url: str) -> Program:
    """Return the program with the sandbox's key, set up for a database and an API."""
    return bare_program(folder).given(
        APPLITOOLS_API_KEY=READ_KEY,
        RESULT_ARCHIVER__API__BASE_URL=api_url,
        RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND="0",
        RESULT_ARCHIVER__DATABASE__URL=database_url,
        # The sandbox's runs stand still: after a week those that are going would be given up.
        RESULT_ARCHIVER__POLLING__GIVE_UP_AFTER="36500d",
    )
