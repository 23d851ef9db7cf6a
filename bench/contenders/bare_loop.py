"""Fetch each run and drop the answer: the upper limit of `requests` with the same threads.

As in the archiver, each request is a copy of a prepared one, and the environment is resolved
once. Nothing is decoded, hashed or stored.
"""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter


def fetch_all(run_ids: Iterator[str], base_url: str, key: str) -> None:
    """Fetch runs until `run_ids`, which several threads share, is exhausted."""
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=1))
    prepared = session.prepare_request(requests.Request("GET", base_url))
    for run_id in run_ids:
        request = prepared.copy()
        request.url = f"{base_url}/api/result/{run_id}?apiKey={key}"
        response = session.send(request, stream=True, timeout=(10, 30), allow_redirects=False)
        response.raise_for_status()
        response.raw.read(decode_content=True)


def main() -> None:
    """Fetch the list with CONNECTIONS threads."""
    run_ids = iter(Path(sys.argv[1]).read_text().split())  # its next() is atomic
    given = (run_ids, os.environ["API_URL"], os.environ["APPLITOOLS_API_KEY"])
    threads = [
        threading.Thread(target=fetch_all, args=given)
        for _ in range(int(os.environ["CONNECTIONS"]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
