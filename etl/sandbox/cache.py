"""A cache of answers, each for the time in which it is valid."""

from collections import OrderedDict
from datetime import datetime

from etl.sandbox.world import Snapshot, World

MAX_BYTES = 64 * 2**20
ENTRY_BYTES = 600  # memory of an entry beside its body, rounded up


class SnapshotCache:
    """A world's latest snapshot of each run; the least used go when `max_bytes` are full.

    For one thread only.
    """

    def __init__(self, world: World, max_bytes: int = MAX_BYTES) -> None:
        self._world = world
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Snapshot] = OrderedDict()
        self.bytes = 0

    def get(self, run_id: str, at: datetime) -> Snapshot | None:
        """Return the world's `snapshot`."""
        kept = self._kept.get(run_id)
        if kept is not None and kept.holds(at):
            self._kept.move_to_end(run_id)
            return kept
        made = self._world.snapshot(run_id, at)
        if made is not None:
            self._keep(run_id, made)
        return made

    def _keep(self, run_id: str, snapshot: Snapshot) -> None:
        replaced = self._kept.pop(run_id, None)
        self._kept[run_id] = snapshot
        self.bytes += _size(snapshot) - (_size(replaced) if replaced else 0)
        while self.bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.bytes -= _size(dropped)


def _size(snapshot: Snapshot) -> int:
    return len(snapshot.body) + ENTRY_BYTES
