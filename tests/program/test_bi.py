"""`bi`: the files for each tool are whole, ours, and name nothing that is not there."""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from tests.db.test_views import VIEWS
from tests.program.test_export import filled_program
from tests.support import grafana
from tests.support.postgres import Server
from tests.support.program import Program

FILES = {"superset": "bundle.zip", "grafana": "board.json", "datasette": "metadata.json"}
FOLDERS = ("sql", "powerbi", "dbt")
SUPERSET_KEYS = {
    "metadata": {"version"},
    "databases": {
        "database_name", "sqlalchemy_uri", "expose_in_sqllab", "allow_run_async", "allow_ctas",
        "allow_cvas", "allow_dml", "extra", "uuid", "version",
    },
    "datasets": {
        "table_name", "main_dttm_col", "description", "schema", "filter_select_enabled", "uuid",
        "metrics", "columns", "version", "database_uuid", "sql",
    },
    "charts": {
        "slice_name", "description", "viz_type", "params", "query_context", "uuid", "version",
        "dataset_uuid",
    },
    "dashboards": {
        "dashboard_title", "description", "slug", "uuid", "position", "metadata", "published",
        "version",
    },
}  # fmt: skip
"""All of them are fields of the import schemas of Superset 6.1, which refuse any other."""


@pytest.fixture
def archiver(tmp_path: Path, database_url: str) -> Program:
    """The program with an archive of two runs."""
    return filled_program(database_url, tmp_path)


@pytest.fixture
def on_postgresql(tmp_path: Path, postgresql_url: str) -> Program:
    return filled_program(postgresql_url, tmp_path)


@pytest.fixture
def on_sqlite(tmp_path: Path, sqlite_url: str) -> Program:
    return filled_program(sqlite_url, tmp_path)


def bundle(archiver: Program, *arguments: str) -> dict[str, dict[str, Any]]:
    """Return the files of a bundle for Superset, by path without root and suffix."""
    done = archiver.call("bi", "superset", "--output", "bundle.zip", *arguments)
    assert done == (0, "bundle.zip\n", "")
    packed = zipfile.ZipFile(io.BytesIO((archiver.folder / "bundle.zip").read_bytes()))
    return {
        name.removeprefix("result-archiver/").removesuffix(".yaml"): json.loads(packed.read(name))
        for name in packed.namelist()
    }


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", FILES)
def test_a_file_is_made_and_replaced_by_the_same(on_sqlite: Program, tool: str) -> None:
    file = on_sqlite.folder / FILES[tool]
    before = None
    for _ in range(2):
        done = on_sqlite.call("bi", tool, "--output", FILES[tool])
        assert done == (0, f"{FILES[tool]}\n", "")
        assert before in {None, file.read_bytes()}
        before = file.read_bytes()


@pytest.mark.parametrize("tool", FOLDERS)
def test_a_folder_is_made_and_replaced_by_the_same(archiver: Program, tool: str) -> None:
    done = archiver.call("bi", tool, "--output", "out")
    assert (done.exit_code, done.stderr) == (0, "")
    files = sorted(path for path in (archiver.folder / "out").rglob("*") if path.is_file())
    before = [file.read_bytes() for file in files]
    names = {str(file.relative_to(archiver.folder)) for file in files}
    assert set(done.stdout.splitlines()) == names
    assert archiver.call("bi", tool, "--output", "out").exit_code == 0
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
    ("tool", "name"),
    [*FILES.items(), ("sql", "out/flaky_tests.sqlite.sql"), ("powerbi", "out/measures.dax")],
)
def test_a_file_that_is_not_ours_stays(on_sqlite: Program, tool: str, name: str) -> None:
    (on_sqlite.folder / "out").mkdir()
    on_sqlite.write(name, "mine")
    output = name.partition("/")[0]
    done = on_sqlite.call("bi", tool, "--output", output)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: --output {name}: exists, and was not written by this command; move it away, or"
        " give another name\n"
    )
    assert (on_sqlite.folder / name).read_text() == "mine"
    assert len(list((on_sqlite.folder / "out").iterdir())) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("tableau", "--output", "x"),
            (
                "bi tableau: there is no such tool; there are superset, grafana, datasette, sql,"
                " powerbi, dbt"
            ),
        ),
        (("superset",), "bi superset: give --output PATH"),
        (
            ("superset", "--output", "no/such/folder.zip"),
            "--output no/such/folder.zip: cannot be written: No such file or directory",
        ),
        (
            ("superset", "--output", "x", "--uri", "postgresql://bi:secret@db/results"),
            (
                "--uri: has a password, which other users of this machine can see; leave it out,"
                " and give it to the tool"
            ),
        ),
        (
            ("superset", "--output", "x", "--uri", "results"),
            "--uri: is no database URL; give postgresql://USER@HOST/DB",
        ),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    archiver: Program, arguments: tuple[str, ...], message: str
) -> None:
    assert archiver.call("bi", *arguments) == (2, "", f"error: {message}\n")
    assert not (archiver.folder / "x").exists()


def test_no_file_has_the_password_of_the_database(
    on_postgresql: Program, postgresql: Server
) -> None:
    texts = [str(bundle(on_postgresql))]
    for tool in (*FOLDERS, "grafana"):
        files = on_postgresql.call("bi", tool, "--output", tool).stdout.splitlines()
        texts += [(on_postgresql.folder / file).read_text() for file in files]
    assert len(texts) > 20
    assert [text for text in texts if postgresql.password in text] == []


def test_without_a_name_the_tools_are_listed(archiver: Program) -> None:
    done = archiver.call("bi")
    assert (done.exit_code, done.stderr) == (0, "")
    assert {line.split()[0] for line in done.stdout.splitlines()[2:]} == {*FILES, *FOLDERS}


# --- Superset -------------------------------------------------------------------------------


def test_a_bundle_has_no_key_that_superset_does_not_know(archiver: Program) -> None:
    files = bundle(archiver)
    for path, content in files.items():
        assert content.keys() == SUPERSET_KEYS[path.partition("/")[0]], path
    views = {path.rpartition("/")[2] for path in files if path.startswith("datasets/")}
    assert views == set(VIEWS)


def test_the_parts_of_a_bundle_name_each_other(archiver: Program) -> None:
    files = bundle(archiver)
    uuids = {path: content["uuid"] for path, content in files.items() if "uuid" in content}
    assert len(set(uuids.values())) == len(uuids)
    parts = {
        kind: {uuid for path, uuid in uuids.items() if path.startswith(kind)}
        for kind in ("databases", "datasets", "charts")
    }
    for path, content in files.items():
        if path.startswith("datasets/"):
            assert content["database_uuid"] in parts["databases"]
            assert content["main_dttm_col"] in {
                None,
                *[each["column_name"] for each in content["columns"]],
            }
        if path.startswith("charts/"):
            assert content["dataset_uuid"] in parts["datasets"]
            assert json.loads(content["query_context"])["form_data"] == content["params"]
    [dashboard] = [content for path, content in files.items() if path.startswith("dashboards/")]
    placed = {
        each["meta"]["uuid"]
        for each in dashboard["position"].values()
        if isinstance(each, dict) and each["type"] == "CHART"
    }
    assert placed == parts["charts"]
    filters = dashboard["metadata"]["native_filter_configuration"]
    assert {"time", "source", "application", "plan"} <= {each["name"].lower() for each in filters}


def test_uuids_and_slugs_are_fixed_but_for_the_prefix(archiver: Program) -> None:
    one, again = bundle(archiver), bundle(archiver)
    other = bundle(archiver, "--prefix", "mobile")
    assert again == one
    uuids, others = (
        {content["uuid"] for content in files.values() if "uuid" in content}
        for files in (one, other)
    )
    assert uuids.isdisjoint(others)
    board = "dashboards/result-archiver"
    assert (one[board]["slug"], other[board]["slug"]) == ("test-results", "mobile-test-results")
    assert other[board]["dashboard_title"] == "mobile: Test results"
    names, others = (
        {content["table_name"] for content in files.values() if "table_name" in content}
        for files in (one, other)
    )
    assert others == {f"mobile-{name}" for name in names}


def test_the_database_is_as_the_tool_reaches_it(archiver: Program) -> None:
    uri = "postgresql+psycopg2://bi@db.example.com/results"
    [database] = [
        content
        for path, content in bundle(archiver, "--uri", uri).items()
        if path.startswith("databases/")
    ]
    assert database["sqlalchemy_uri"] == uri


# --- others ---------------------------------------------------------------------------------


def test_a_dashboard_of_grafana_has_no_data_source_of_its_own(archiver: Program) -> None:
    archiver.call("bi", "grafana", "--output", "board.json")
    board = json.loads((archiver.folder / "board.json").read_text())
    assert set(sources_in(board)) == {"${datasource}"}
    assert {"datasource", "source", "application", "plan"} <= {
        each["name"] for each in board["templating"]["list"]
    }
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) == 11
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(places) == 11


def test_a_dashboard_of_grafana_is_valid_by_grafanas_models(archiver: Program) -> None:
    archiver.call("bi", "grafana", "--output", "board.json")
    board = json.loads((archiver.folder / "board.json").read_text())
    assert grafana.list_faults(board) == []


def test_a_fault_of_a_dashboard_is_seen(archiver: Program) -> None:
    archiver.call("bi", "grafana", "--output", "board.json")
    board = json.loads((archiver.folder / "board.json").read_text())
    board["templating"]["list"][1]["refresh"] = "often"
    board["panels"][0]["gridPos"]["w"] = "12"
    board["panels"][1]["fieldConfig"]["defaults"]["custom"]["lineColour"] = "red"
    board["panels"][2] |= {"legend": True}
    assert [fault.partition(":")[0] for fault in grafana.list_faults(board)] == [
        ".panels[1].fieldConfig.defaults.custom.lineColour",
        ".panels[2].legend",
        ".panels[0].grid_pos[0].w",
        ".templating[0].list_val[1].refresh",
    ]


def sources_in(part: Any) -> list[str]:
    """Return the uid of each data source."""
    if isinstance(part, list):
        return [uid for each in part for uid in sources_in(each)]
    if not isinstance(part, dict):
        return []
    here = [part["datasource"]["uid"]] if "datasource" in part else []
    return here + [uid for each in part.values() for uid in sources_in(each)]


def test_a_measure_of_power_bi_names_columns_that_are_there(archiver: Program) -> None:
    archiver.call("bi", "powerbi", "--output", "out")
    text = (archiver.folder / "out" / "measures.dax").read_text()
    files = bundle(archiver)
    columns = {
        (content["table_name"], each["column_name"])
        for path, content in files.items()
        if path.startswith("datasets/")
        for each in content["columns"]
    }
    named = set(re.findall(r"(\w+)\[(\w+)\]", text))
    assert len(named) > 10
    assert named <= columns
    titles = [line.partition(" = ")[0] for line in text.splitlines() if " = " in line]
    assert len(titles) == len(set(titles))


def test_power_bi_connects_to_postgresql(on_postgresql: Program, postgresql_url: str) -> None:
    on_postgresql.call("bi", "powerbi", "--output", "out")
    file = on_postgresql.folder / "out" / "result-archiver.pbids"
    [connection] = json.loads(file.read_text())["connections"]
    url = make_url(postgresql_url)
    assert connection["details"] == {
        "protocol": "postgresql",
        "address": {"server": f"{url.host}:{url.port}", "database": url.database},
    }


def test_datasette_is_refused_for_postgresql(on_postgresql: Program) -> None:
    done = on_postgresql.call("bi", "datasette", "--output", "metadata.json")
    assert done == (
        2,
        "",
        "error: bi datasette: Datasette reads SQLite, and this archive is in PostgreSQL\n",
    )
