"""Reading a run list takes time in proportion to its length, in every format."""

import gc
import json
import time
from collections.abc import Callable

import pytest

from etl.intake.formats import read_list

Writer = Callable[[list[str]], str]

WRITERS: dict[str, Writer] = {
    "plain": "\n".join,
    "csv": lambda ids: "run_id,team\n" + "\n".join(f"{run_id}," for run_id in ids),
    "array": json.dumps,
    "pretty objects": lambda ids: json.dumps([{"run_id": run_id} for run_id in ids], indent=2),
    "answers": lambda ids: "\n".join(
        json.dumps({"result": {"id": run_id}}, indent=2) for run_id in ids
    ),
    "lines": lambda ids: "\n".join(json.dumps({"run_id": run_id}) for run_id in ids),
    "cut-off lines": lambda ids: "\n".join(f'{{"run_id": "{run_id}"' for run_id in ids),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_time_grows_with_the_list_and_not_with_its_square(write: Writer) -> None:
    def cpu_seconds(count: int) -> float:
        content = write([f"run-{number}" for number in range(count)]).encode()
        gc.collect()
        gc.disable()  # a collection would walk the memory of earlier tests, too
        try:
            started = time.process_time()
            read_list(content)
            return time.process_time() - started
        finally:
            gc.enable()

    short, long = (min(cpu_seconds(count) for _ in range(3)) for count in (4_000, 40_000))
    assert long < 40 * short  # quadratic growth would give 100
