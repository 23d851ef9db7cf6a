"""The checks by tools pass, and the lock files match pyproject.toml."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME = PYPROJECT["project"]["dependencies"]
BENCH = PYPROJECT["dependency-groups"]["bench"]
DEVELOPMENT = PYPROJECT["dependency-groups"]["dev"] + PYPROJECT["build-system"]["requires"]


@pytest.mark.parametrize(
    "command", ["ruff check", "ruff format --check", "mypy", "lint-imports --no-logo"]
)
def test_the_tool_finds_nothing(command: str) -> None:
    tool, *arguments = command.split()
    done = subprocess.run(
        [Path(sys.executable).with_name(tool), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("requirements.lock", RUNTIME),
        ("requirements-dev.lock", RUNTIME + DEVELOPMENT),
        ("requirements-bench.lock", RUNTIME + BENCH),
    ],
)
def test_the_lock_file_meets_pyproject(name: str, wanted: list[str]) -> None:
    pins = pinned_versions(ROOT / name)
    unmet = [
        line
        for line in wanted
        if not (need := Requirement(line)).specifier.contains(pins.get(need.name, ""))
    ]
    assert unmet == [], f"{name} is behind pyproject.toml; run: make lock"


@pytest.mark.parametrize("name", ["requirements-dev.lock", "requirements-bench.lock"])
def test_all_lock_files_pin_the_same_versions(name: str) -> None:
    runtime = pinned_versions(ROOT / "requirements.lock")
    assert runtime.items() <= pinned_versions(ROOT / name).items()


def pinned_versions(lock: Path) -> dict[str, str]:
    """Return the version of each package in a lock file."""
    pins = [line.split()[0] for line in lock.read_text().splitlines() if "==" in line]
    return dict(pin.split("==") for pin in pins)
