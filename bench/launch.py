"""Run a command and print what it took: seconds, seconds of CPU, peak in KiB, exit code.

The kernel counts a process's peak from that of whoever started it: this one is as small as
Python can be, and is run by its path, without site packages.
"""

import os
import sys
import time


def main() -> None:
    """Run the command given after the file that takes its output."""
    log, *command = sys.argv[1:]
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    redirected = [
        (os.POSIX_SPAWN_DUP2, nothing, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
    ]
    began = time.perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=redirected)
    _, status, usage = os.wait4(pid, 0)
    elapsed_s = time.perf_counter() - began
    cpu_s = usage.ru_utime + usage.ru_stime
    print(elapsed_s, cpu_s, usage.ru_maxrss, os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
