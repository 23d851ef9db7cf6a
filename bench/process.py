"""Run a contender as a whole process, and measure it."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

LAUNCHER = Path(__file__).with_name("launch.py")


class Sample(NamedTuple):
    """Wall-clock time, CPU time and peak memory of a process."""

    elapsed_s: float
    cpu_s: float
    peak_mib: float


class FailedError(Exception):
    """A contender failed or left wrong rows, so its time is meaningless."""


def measure(command: Sequence[str | Path], environment: Mapping[str, str], folder: Path) -> Sample:
    """Run a command in `folder` with that environment alone; write its output to `output` there.

    Raises:
        FailedError: its exit code is not 0; the text contains the end of its output.
    """
    log = folder / "output"
    launched = subprocess.run(
        [sys.executable, "-I", "-S", LAUNCHER, log, *command],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    elapsed_s, cpu_s, peak_kib, exit_code = map(float, launched.stdout.split())
    if exit_code:
        end = log.read_text(errors="replace")[-2000:]
        shown = " ".join(map(str, command))
        raise FailedError(f"{shown} ended with {exit_code:.0f}:\n{end}")
    return Sample(elapsed_s, cpu_s, peak_kib / 1024)
