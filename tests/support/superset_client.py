"""Run by Superset's Python: import a bundle repeatedly, and print the data of its charts as JSON.

python superset_client.py BUNDLE DASHBOARD_SLUG
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from superset.app import create_app

USER = {"username": "admin", "password": "admin", "provider": "db"}


def main(bundle: str, slug: str) -> None:
    """Print the rows of each chart, without a filter and of one application."""
    superset = str(Path(sys.executable).with_name("superset"))
    for what in ("dashboards", "datasources", "dashboards"):
        command = [superset, f"import-{what}", "--path", bundle, "--username", "admin"]
        subprocess.run(command, check=True)
    client = create_app().test_client()
    token = client.post("/api/v1/security/login", json=USER).get_json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    answer = client.get(f"/api/v1/dashboard/{slug}/charts", headers=headers)
    charts = answer.get_json()["result"]
    found = {chart["slice_name"]: read_chart(client, headers, chart["id"]) for chart in charts}
    print(json.dumps(found))  # noqa: T201  the answer of this program


def read_chart(client: Any, headers: dict[str, str], chart_id: int) -> list[list[dict[str, Any]]]:
    """Return a chart's rows by its own query, and by one with a filter of the dashboard."""
    saved = client.get(f"/api/v1/chart/{chart_id}/data/", headers=headers)
    chart = client.get(f"/api/v1/chart/{chart_id}", headers=headers).get_json()["result"]
    context = json.loads(chart["query_context"])
    dataset = client.get(f"/api/v1/dataset/{context['datasource']['id']}", headers=headers)
    columns = {each["column_name"] for each in dataset.get_json()["result"]["columns"]}
    for query in context["queries"] if "application" in columns else ():
        query["filters"].append({"col": "application", "op": "IN", "val": ["Storefront"]})
    filtered = client.post("/api/v1/chart/data", headers=headers, json=context)
    return [rows_of(each) for each in (saved, filtered)]


def rows_of(answer: Any) -> list[dict[str, Any]]:
    """Return the rows of an answer; fail with its text if it is none."""
    if answer.status_code != 200:
        sys.exit(answer.get_data(as_text=True))
    rows: list[dict[str, Any]] = answer.get_json()["result"][0]["data"]
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
