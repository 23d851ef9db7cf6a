"""Standard output and error that do not fail: the exit code tells how the command went.

A reader that closed the pipe loses the rest of the output; a character that the terminal's
encoding lacks is printed as a backslash escape.
"""

import io
import os
import sys
from typing import Any, TextIO

from etl.errors import ArchiverError


class _LastingFile(io.FileIO):
    """A file descriptor that discards all output once it cannot be written any more."""

    _is_lost = False

    def write(self, data: Any, /) -> int:
        """Write `data`. Raises ArchiverError once, for any failure but a closed pipe."""
        if not self._is_lost:
            try:
                return super().write(data)
            except BrokenPipeError:
                self._is_lost = True
            except OSError as error:
                self._is_lost = True
                raise ArchiverError(
                    f"the output cannot be written: {error.strerror}", "the rest of it is lost"
                ) from None
        return memoryview(data).nbytes


def protect_output() -> None:
    """Replace stdout and stderr of the process by streams that do not fail."""
    sys.stdout = _protect(sys.stdout)
    sys.stderr = _protect(sys.stderr)


def _protect(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed by the shell, as in `>&-`
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  it has no path
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_LastingFile(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream is sys.stderr or stream.isatty(),
    )
