"""The wheel works alone: in an environment of its own, far from the checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a release would have it, built with the locked backend and no network."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    [path] = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel in it.

    The dependencies are those of this environment, through a .pth file: that adds its packages,
    but not the checkout, which stands in a .pth file there.
    """
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel)
    [site_packages] = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


def run(*command: str | Path) -> str:
    """Run a command and return what it prints; fail with its output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_imported_package_is_the_wheels(programs: Path) -> None:
    where = Path(run(programs / "python", "-c", "import etl; print(etl.__file__)").strip())
    assert where.is_relative_to(programs.parent)


@pytest.mark.parametrize(
    "name", ["migrations/env.py", "migrations/dictionary.toml", "config.example.toml"]
)
def test_the_wheel_carries_what_lies_beside_the_package(wheel: Path, name: str) -> None:
    carried = zipfile.Path(wheel) / "etl" / "_bundled" / name
    assert carried.read_text() == (ROOT / name).read_text()


def test_the_wheel_has_nothing_but_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"etl", "result_archiver"}


@pytest.mark.parametrize("command", ["demo", "init", "db upgrade"])
def test_the_command_works_in_an_empty_folder(programs: Path, command: str) -> None:
    run(programs / "result-archiver", *command.split())


def test_it_makes_the_queries_of_charts(programs: Path, tmp_path: Path) -> None:
    run(programs / "result-archiver", "db", "upgrade")
    run(programs / "result-archiver", "bi", "sql", "--output", "charts")
    assert "FROM daily_trend" in (tmp_path / "charts" / "pass_rate_by_day.sqlite.sql").read_text()


def test_it_makes_the_page(programs: Path) -> None:
    run(programs / "result-archiver", "db", "upgrade")
    page = run(programs / "result-archiver", "report", "--format", "html")
    assert page.startswith("<!doctype html>")
    assert "--passed: #" in page
