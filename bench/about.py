"""Describe the test machine: versions and cores, without its name."""

import importlib.metadata
import os
import platform
import sqlite3
import subprocess
from pathlib import Path

from tests.support.postgres import find_programs

LIBRARIES = ("requests", "SQLAlchemy", "psycopg", "msgspec", "zstandard")


def versions(dlt_python: Path) -> dict[str, str]:
    """Return the versions of all programs and libraries; of dlt if it is installed."""
    found = {
        "cores": str(os.cpu_count()),
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "PostgreSQL": _output(find_programs() / "postgres", "--version").split()[2],
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    if dlt_python.exists():
        ask = "import importlib.metadata as m; print(m.version('dlt'))"
        found["dlt"] = _output(dlt_python, "-c", ask).strip()
    return found


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
