"""Run a contender as a whole process, and see what it took."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Sample(NamedTuple):
    """What a process took: wall clock and CPU time, and the most memory it ever held.

    The kernel counts the memory of whoever started a process as well, so this one stays small.
    """

    elapsed_s: float
    cpu_s: float
    peak_mib: float


class FailedError(Exception):
    """A contender failed or left the wrong rows: its time would mean nothing."""


def measure(command: Sequence[str | Path], environment: Mapping[str, str], folder: Path) -> Sample:
    """Run a command in `folder` with that environment alone.

    Raises:
        FailedError: its exit code is not 0; the text has the end of its output.
    """
    log = folder / "output"
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        elapsed_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = log.read_text(errors="replace")[-2000:]
        raise FailedError(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{end}")
    return Sample(elapsed_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
