"""The ready-made units in docs/operations work as they stand, and its guide tells the truth."""

import configparser
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etl import clock, errors
from etl.config import loading, settings
from etl.config.settings import Schedule
from etl.db import database
from etl.ingest.triggers import make_trigger
from etl.ledger.lifecycle import State
from etl.sandbox.api import READ_KEY
from etl.secrets.masking import API_KEY_ENV
from etl.telemetry import prometheus
from tests.support import fake_api
from tests.support.fake_api import result
from tests.support.program import bare_program

yaml = importlib.import_module("yaml")  # PyYAML has no type hints

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations"
GUIDE = (OPERATIONS / "README.md").read_text()
SERVICES = ["result-archiver.service", "result-archiver-ingest.service"]
UNITS = [*SERVICES, "result-archiver-ingest.timer"]
FILES = ["crontab", "cronjob.yaml", "README.md", *UNITS]
PROGRAM = "/opt/result-archiver/bin/result-archiver"
INSTALLED = Path(sys.executable).with_name("result-archiver")

# What each section may have: a misspelt key would be silently left out. See systemd.unit(5),
# systemd.service(5), systemd.timer(5), systemd.exec(5) and systemd.kill(5).
KEYS = {
    "Unit": {"Description", "Wants", "After"},
    "Install": {"WantedBy"},
    "Timer": {"OnCalendar", "Persistent", "RandomizedDelaySec", "Unit"},
    "Service": {
        "Type", "ExecStart", "Restart", "RestartSec", "RestartPreventExitStatus",
        "TimeoutStartSec", "TimeoutStopSec", "User", "WorkingDirectory", "StateDirectory",
        "StateDirectoryMode", "LoadCredential", "EnvironmentFile", "Environment",
        "NoNewPrivileges", "CapabilityBoundingSet", "ProtectSystem", "ProtectHome", "PrivateTmp",
        "PrivateDevices", "ProtectClock", "ProtectControlGroups", "ProtectHostname",
        "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc",
        "LockPersonality", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime",
        "RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallFilter", "UMask",
    },
}  # fmt: skip


def cron_lines() -> list[tuple[str, str]]:
    """Return (the five fields, the command) of each line of the crontab that starts something."""
    lines = (OPERATIONS / "crontab").read_text().splitlines()
    jobs = [line for line in lines if line and not line.startswith("#")]
    parted = [line.split(maxsplit=5) for line in jobs if not re.match(r"\w+=", line)]
    return [(" ".join(fields), command) for *fields, command in parted]


class UnitParser(configparser.ConfigParser):
    """Reads units, whose keys are case-sensitive; a key that comes twice is an error."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def unit(name: str) -> configparser.ConfigParser:
    parser = UnitParser(delimiters="=", comment_prefixes="#", interpolation=None)
    parser.read(OPERATIONS / name)
    return parser


def cron_job() -> dict[str, Any]:
    [found] = yaml.safe_load_all((OPERATIONS / "cronjob.yaml").read_text())
    return dict(found)


def container() -> dict[str, Any]:
    pod = cron_job()["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return dict(pod["containers"][0])


def commands() -> Iterator[list[str]]:
    """Yield the arguments of each call of the program in the units."""
    for _fields, line in cron_lines():
        words = shlex.split(line.partition("exec ")[2].partition(">>")[0])
        assert words[0] == PROGRAM
        yield words[1:]
    for name in SERVICES:
        words = shlex.split(unit(name)["Service"]["ExecStart"])
        assert words[0] == PROGRAM
        yield words[1:]
    words = container()["command"]
    assert words[0] == "result-archiver"
    yield words[1:]


def environment(name: str) -> dict[str, str]:
    """Return the variables that a unit sets, with paths for systemd's specifiers."""
    words = shlex.split(unit(name)["Service"]["Environment"].replace("\\\n", " "))
    pairs = (word.replace("%d", "/run/credentials").replace("%S", "/var/lib") for word in words)
    return dict(pair.split("=", 1) for pair in pairs)


# --- commands and settings ---


@pytest.mark.parametrize("arguments", [pytest.param(c, id=c[-1]) for c in commands()])
def test_every_command_exists_with_its_options(arguments: list[str], tmp_path: Path) -> None:
    done = bare_program(tmp_path).call(*arguments, "--help")
    assert done.exit_code == 0
    assert f"result-archiver {arguments[-1]} [OPTIONS]" in done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_variable_of_a_service_is_a_setting(name: str) -> None:
    found = loading.load(None, environment(name))
    assert found.api.key_file == "/run/credentials/api.key"
    assert found.security.token_key_file == "/var/lib/result-archiver/token.key"
    assert found.log.format == "json"


def test_every_variable_of_the_cron_job_is_a_setting() -> None:
    kept_in_a_secret = {"RESULT_ARCHIVER__DATABASE__URL": "postgresql://db.example.com/results"}
    variables = {
        each["name"]: each.get("value") or kept_in_a_secret.get(each["name"], "x")
        for each in container()["env"]
    }
    found = loading.load(None, variables)
    assert found.database.url.endswith("db.example.com/results")
    assert found.security.token_key_file == "/keys/token.key"
    assert API_KEY_ENV in variables


# --- cron ---


def test_every_line_of_the_crontab_names_times_that_come() -> None:
    assert len(cron_lines()) == 2
    for fields, _command in cron_lines():
        make_trigger(Schedule(cron=fields))


def test_no_line_of_the_crontab_has_what_cron_would_cut() -> None:
    """A percent sign ends the command, for cron."""
    assert not any("%" in command for _fields, command in cron_lines())


def test_the_cron_line_does_a_pass_and_logs_it(tmp_path: Path, sqlite_url: str) -> None:
    """As cron does: by /bin/sh, from a home folder, with hardly any environment."""
    [ingest] = [command for _fields, command in cron_lines() if " ingest " in command]
    for path in ("/etc/result-archiver", "/var/log/result-archiver"):
        assert path in ingest
        ingest = ingest.replace(path, str(tmp_path))
    with fake_api.serving() as api:
        api.other = result()
        (tmp_path / "env").write_text(
            f"APPLITOOLS_API_KEY='{READ_KEY}'\nRESULT_ARCHIVER__DATABASE__URL='{sqlite_url}'\n"
        )
        (tmp_path / "config.toml").write_text(
            f'[api]\nbase_url = "{api.url}"\n[runs]\nsources = ["runs.txt"]\n'
        )
        (tmp_path / "runs.txt").write_text("r1\n")
        done = subprocess.run(
            ["/bin/sh", "-c", ingest.replace(PROGRAM, str(INSTALLED))],
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert "1 new" in (tmp_path / "ingest.log").read_text()


# --- systemd ---


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_has_only_sections_and_keys_that_systemd_knows(name: str) -> None:
    for section, body in unit(name).items():
        if section != configparser.DEFAULTSECT:
            assert body.keys() <= KEYS[section], section


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_locked_in_and_gets_its_key_as_a_credential(name: str) -> None:
    service = unit(name)["Service"]
    assert service["LoadCredential"] == "api.key:/etc/result-archiver/api.key"
    assert service["User"] == "result-archiver"
    assert service["ProtectSystem"] == "strict"
    assert service["NoNewPrivileges"] == "yes"
    assert service["CapabilityBoundingSet"] == ""


def test_the_service_has_time_to_finish_and_is_not_restarted_into_a_wrong_setting() -> None:
    service = unit("result-archiver.service")["Service"]
    assert service["Restart"] == "on-failure"
    assert int(service["RestartPreventExitStatus"]) == errors.ConfigError.exit_code
    assert int(service["TimeoutStopSec"]) > 10


def test_the_timer_starts_the_pass_and_makes_up_for_missed_ones() -> None:
    timer = unit("result-archiver-ingest.timer")["Timer"]
    assert timer["Unit"] == "result-archiver-ingest.service"
    assert timer["Persistent"] == "true"
    assert unit(timer["Unit"])["Service"]["Type"] == "oneshot"


@pytest.mark.parametrize("name", UNITS)
def test_systemd_itself_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    """Where it is not installed, the tests above stand alone."""
    for each in UNITS:
        content = (OPERATIONS / each).read_text()
        (tmp_path / each).write_text(content.replace(PROGRAM, str(INSTALLED)))
    assert unit(name).sections()
    if analyze := shutil.which("systemd-analyze"):
        done = subprocess.run(
            [analyze, "verify", "--man=no", tmp_path / name],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


# --- Kubernetes ---


JOB_SCHEMA: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "CronJob",
    "metadata": {"name": str},
    "spec": {
        "schedule": str,
        "timeZone": str,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": int,
        "jobTemplate": {
            "spec": {
                "activeDeadlineSeconds": int,
                "backoffLimit": 0,
                "template": {
                    "spec": {
                        "restartPolicy": "Never",
                        "automountServiceAccountToken": False,
                        "securityContext": {"runAsNonRoot": True, "runAsUser": int},
                        "initContainers": [{"name": str, "image": str, "command": [str]}],
                        "containers": [
                            {
                                "name": str,
                                "image": str,
                                "command": [str],
                                "env": [{"name": str}],
                                "resources": {"limits": {"memory": str}},
                                "securityContext": {
                                    "allowPrivilegeEscalation": False,
                                    "readOnlyRootFilesystem": True,
                                },
                                "volumeMounts": [{"name": str, "mountPath": str}],
                            }
                        ],
                        "volumes": [{"name": str}],
                    }
                },
            }
        },
    },
}


def misfits(value: Any, schema: Any, path: str = "$") -> list[str]:
    """Say where `value` is not as `schema` has it: a type, a value, or each of a list's items."""
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{path} is no {schema.__name__}"]
    if isinstance(schema, dict):
        return [
            problem
            for key, part in schema.items()
            for problem in (
                misfits(value[key], part, f"{path}.{key}") if key in value else [f"no {path}.{key}"]
            )
        ]
    if isinstance(schema, list):
        items = [misfits(item, schema[0], f"{path}[{n}]") for n, item in enumerate(value)]
        return [problem for found in items for problem in found] if items else [f"{path} is empty"]
    return [] if value == schema else [f"{path} is {value!r}"]


def test_the_cron_job_is_as_kubernetes_wants_it() -> None:
    assert misfits(cron_job(), JOB_SCHEMA) == []


def test_the_cron_job_comes_as_often_as_the_crontab_and_ends_in_time() -> None:
    spec = cron_job()["spec"]
    assert spec["schedule"] in {fields for fields, _command in cron_lines()}
    assert spec["startingDeadlineSeconds"] < 600
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] <= 3600


def test_the_cron_job_takes_its_secrets_from_secrets() -> None:
    env = {each["name"]: each for each in container()["env"]}
    for name in (API_KEY_ENV, "RESULT_ARCHIVER__DATABASE__URL"):
        assert env[name].keys() == {"name", "valueFrom"}
        assert env[name]["valueFrom"].keys() == {"secretKeyRef"}


def test_every_mount_of_the_cron_job_has_its_volume() -> None:
    pod = cron_job()["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {
        mount["name"]
        for each in (*pod["initContainers"], *pod["containers"])
        for mount in each["volumeMounts"]
    }
    assert mounted == set(volumes)
    assert volumes["token-key"]["secret"]["secretName"] == "result-archiver-token-key"


# --- secrets and the guide ---


@pytest.mark.parametrize("name", FILES)
def test_no_secret_and_no_host_of_anybody_stands_in_a_file(name: str) -> None:
    content = (OPERATIONS / name).read_text()
    assert not re.search(r"(?i)apikey=|read_token=|://[^/\s:@]+:[^/\s@]+@", content)
    assert not re.search(r"\b(?=\w*[a-z])(?=\w*[A-Z])(?=\w*\d)[\w+/-]{24,}", content)
    hosts = re.findall(r"(?:https?|postgresql)://([^/\s:\"`]+)", content)
    assert {host for host in hosts if host != "127.0.0.1"} <= {"db.example.com"}


def test_the_guide_names_every_file(tmp_path: Path) -> None:
    there = {path.name for path in OPERATIONS.iterdir()}
    assert there == set(FILES)
    linked = set(re.findall(r"\]\(([^)#]+)\)", GUIDE))
    assert linked == there - {"README.md"}


def exported(database_url: str) -> set[str]:
    engine = database.connect(database_url)
    database.upgrade(engine)
    found = {
        sample.name
        for metric in prometheus.make_registry(engine, clock.now).collect()
        for sample in metric.samples
    }
    engine.dispose()
    return found


def test_the_guide_lists_every_metric_and_no_other(sqlite_url: str) -> None:
    """Those without a sample yet, such as outcomes, have a sample of 0 all the same."""
    listed = re.findall(r"^\| `(result_archiver_\w+)` \| \S", GUIDE, re.MULTILINE)
    assert sorted(listed) == sorted(exported(sqlite_url))


def test_the_alerts_are_rules_about_metrics_that_exist(sqlite_url: str) -> None:
    [block] = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    [group] = yaml.safe_load(block)["groups"]
    used = {
        name for rule in group["rules"] for name in re.findall(r"result_archiver_\w+", rule["expr"])
    }
    assert len(group["rules"]) >= 4
    assert used <= exported(sqlite_url)


def test_the_guide_has_every_exit_code() -> None:
    [table] = re.findall(r"^## Exit codes$(.*)", GUIDE, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    listed = [int(code) for row in rows for code in row.split(",")]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    ours = {kind.exit_code for kind in kinds if issubclass(kind, errors.ArchiverError)}
    assert sorted(listed) == sorted(ours | {0, 5, 130, 143})


def test_the_guide_explains_every_state_of_the_ledger() -> None:
    [section] = re.findall(r"^## States of a run$(.*?)^## ", GUIDE, re.MULTILINE | re.DOTALL)
    table = section.split("\n\n")[2]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [*State]


def test_every_setting_that_the_guide_names_exists() -> None:
    named = re.findall(r"`(\w+)\.(\w+)`", GUIDE)
    assert named
    for section, key in named:
        if section in settings.SECTIONS:
            assert key in settings.SECTIONS[section].__struct_fields__, f"{section}.{key}"
