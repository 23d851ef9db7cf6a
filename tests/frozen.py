"""Run the command line with a clock that stands still: frozen.py TIME COMMAND..."""

import sys
from datetime import datetime

import time_machine

from etl import cli

if __name__ == "__main__":
    moment = datetime.fromisoformat(sys.argv.pop(1))
    with time_machine.travel(moment, tick=False):
        sys.exit(cli.main())
