"""Start the command line: `python -m etl` or `result-archiver`."""

import gc
import sys

from etl.runtime import relax_garbage_collection

relax_garbage_collection()

from etl.cli import command_line, streams  # noqa: E402  imports alone make hundreds of thousands of objects


def main() -> None:
    """Run the command line and end the process with its exit code."""
    streams.protect_output()
    exit_code = command_line.main()
    gc.freeze()  # spares the last collections all objects of the process
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
