"""Start the command line: `python -m etl` or `result-archiver`."""

import gc
import sys

# Imports make hundreds of thousands of objects, all of which stay: to look for garbage among them
# takes a tenth of the time of a start. A command that has loaded its modules begins to look again.
gc.disable()

from etl.cli import command_line, streams  # noqa: E402


def main() -> None:
    """Run the command line and end the process with its exit code."""
    streams.protect_output()
    exit_code = command_line.main()
    gc.freeze()  # spares the last collections all objects of the process
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
