"""The plans that run again in a pass: then their applications' test ids can be compared."""

from collections import Counter
from collections.abc import Iterable

from etl.derived.plans import Application, Plan

MOST_PLANS = 5000
"""Plans that are remembered; the ids of others are compared at the end of the pass."""


class PlanRepeats:
    """Counts the repeats of plans, by application."""

    def __init__(self) -> None:
        self._seen: set[Plan] = set()
        self._repeats: Counter[Application] = Counter()

    def add(self, plans: Iterable[Plan]) -> set[Application]:
        """Add the plans of new runs; return the applications to measure now.

        These are the ones with their first, second, fourth, eighth repeat and so on: an early
        decision on test ids leaves few runs to be rewritten, and few measurements are needed.
        """
        due = set()
        for plan in plans:
            if plan in self._seen:
                self._repeats[plan.owner] += 1
                if self._repeats[plan.owner].bit_count() == 1:
                    due.add(plan.owner)
            elif len(self._seen) < MOST_PLANS:
                self._seen.add(plan)
        return due
