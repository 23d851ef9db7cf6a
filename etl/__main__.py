"""Start the command line: `python -m etl` or `result-archiver`."""

import sys

from etl import cli


def main() -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
