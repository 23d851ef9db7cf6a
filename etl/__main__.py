"""Start the command line: `python -m etl` or `result-archiver`."""

import gc
import sys

from etl.runtime import look_for_cycles_seldom

look_for_cycles_seldom()

from etl.cli import command_line  # noqa: E402  hundreds of thousands of objects are made by imports alone


def main() -> None:
    """Run the command line and end the process with its exit code."""
    exit_code = command_line.main()
    gc.freeze()  # the last collections need not look at all that goes anyway
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
