"""Run the command line with a clock that stands still: -m tests.support.frozen TIME COMMAND..."""

import sys
from datetime import datetime

import time_machine

from etl.cli import command_line
from etl.cli.session import Wiring
from etl.db.database_clock import keep_clock

if __name__ == "__main__":
    moment = datetime.fromisoformat(sys.argv.pop(1))
    with time_machine.travel(moment, tick=False):
        sys.exit(command_line.main(wiring=Wiring(shared_clock=keep_clock)))
