"""Run a command, and print its seconds, CPU seconds, peak memory in KiB and exit code.

A process inherits the peak of its parent from the kernel. So this parent is as small as Python
can be: it is run by its path, without site packages.
"""

import os
import signal
import sys
import time
from pathlib import Path

EVERY_S = 0.02


def main() -> None:
    """Run the command that follows the name of its output file."""
    log, *command = sys.argv[1:]
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    redirected = [
        (os.POSIX_SPAWN_DUP2, nothing, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
    ]
    ended = {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, ended)
    began = time.perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=redirected, setsigmask=[])
    peaks: dict[int, tuple[int, int]] = {}
    while signal.sigtimedwait(ended, EVERY_S) is None:
        peaks |= {each: found for each in family(pid) if (found := peak_of(each))}
    _, status, usage = os.wait4(pid, 0)
    elapsed_s = time.perf_counter() - began
    cpu_s = usage.ru_utime + usage.ru_stime
    print(elapsed_s, cpu_s, sum_peaks(peaks), os.waitstatus_to_exitcode(status))


def family(pid: int) -> list[int]:
    """Return the IDs of a process and its descendants."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [pid, *(each for text in lists for child in text.split() for each in family(int(child)))]


def peak_of(pid: int) -> tuple[int, int] | None:
    """Return a process's peak memory and its file-backed memory now, in KiB; None if it ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines)
    if "VmHWM" not in values:
        return None
    peak, files = (int(values[name].split()[0]) for name in ("VmHWM", "RssFile"))
    return peak, files


def sum_peaks(peaks: dict[int, tuple[int, int]]) -> int:
    """Return the sum of peaks; count file-backed memory (Python and libraries) once."""
    of_their_own = sum(peak - files for peak, files in peaks.values())
    return of_their_own + max((files for _, files in peaks.values()), default=0)


if __name__ == "__main__":
    main()
