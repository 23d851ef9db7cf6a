"""The breakers of all sources of a pass, with the budget that they share.

Pure: time is an argument. One account's failure never stops another's.
"""

from collections.abc import Mapping, Sequence

from etl.answers.outcome import Target
from etl.fetch.breaker import Breaker, Job
from etl.fetch.permits import Halt, PermitAsk, Permits
from etl.fetch.rate_limit import Budget, RequestLimits


class Sources:
    """A breaker for each source, made for its first run; one budget."""

    def __init__(self, limits: RequestLimits, controls: Mapping[str, Target]) -> None:
        self.budget = Budget(limits)
        self._limits = limits
        self._controls = controls
        self._by_name: dict[str, Breaker] = {}
        self.is_interrupted = False

    def of(self, target: Target) -> Breaker:
        """Return the breaker of a run's source."""
        name = target.source
        if name not in self._by_name:
            control = self._controls.get(name)
            self._by_name[name] = Breaker(self._limits, self.budget, control)
        return self._by_name[name]

    def full(self, low_mark: int) -> list[str]:
        """Return the sources that need no more targets: stopped ones, and those with many."""
        return [
            name
            for name, each in self._by_name.items()
            if each.halt is not None or each.waiting > low_mark
        ]

    def asks_in_s(self, now: float) -> float | None:
        """Return in how many seconds `ask_permits` has something to say; None: not yet."""
        soonest: float | None = None
        for each in self._by_name.values():
            wait_s = each.asks_in_s(now)
            if wait_s is not None:
                soonest = wait_s if soonest is None else min(soonest, wait_s)
        return soonest

    def ask_permits(self, now: float) -> PermitAsk | None:
        """Return what a source has to ask or to report now, if one has."""
        asks = (each.ask_permits(name, now) for name, each in self._by_name.items())
        return next(filter(None, asks), None)

    def permit(self, permits: Permits, now: float) -> None:
        """Give permits to their source."""
        if permits.source in self._by_name:
            self._by_name[permits.source].permit(permits, now)

    def halted(self) -> list[str]:
        """Return the sources that are stopped."""
        return [name for name, each in self._by_name.items() if each.halt is not None]

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, and nothing will be without more targets."""
        return all(each.is_idle for each in self._by_name.values())

    def offer(self, targets: Sequence[Target]) -> None:
        """Queue runs."""
        for target in targets:
            self.of(target).offer([target])

    def drop(self) -> list[Job]:
        """Remove the queued runs of all sources, and return them."""
        return [job for each in self._by_name.values() for job in each.drop()]

    def take(self, now: float) -> Job | None:
        """Return a job that may be sent now, of each source in its turn."""
        for name, breaker in self._by_name.items():
            if job := breaker.take(now):
                if len(self._by_name) > 1:
                    self._by_name[name] = self._by_name.pop(name)
                return job
        return None

    def wait_s(self, now: float) -> float | None:
        """Return in how many seconds `take` may succeed; None: not before a job comes back."""
        waits = (each.wait_s(now) for each in self._by_name.values())
        return min((wait_s for wait_s in waits if wait_s is not None), default=None)

    def interrupt(self) -> None:
        """Stop all sources, and those whose first run is still to come."""
        for each in self._by_name.values():
            each.stop(Halt.INTERRUPTED, "")
        self.is_interrupted = True

    def ask_controls(self) -> bool:
        """Queue archived runs for idle sources whose failures are not clear; see `Breaker`."""
        asked = [each.ask_control() for each in self._by_name.values()]
        return any(asked)

    def finish(self) -> None:
        """Decide about the jobs held back."""
        for each in self._by_name.values():
            each.finish()

    def take_finished(self) -> list[Job]:
        """Return the jobs decided since the last call."""
        return [job for each in self._by_name.values() for job in each.take_finished()]

    def deferred(self) -> list[Job]:
        """Return the jobs of stopped sources that end with the API's failure."""
        return [job for each in self._by_name.values() for job in each.deferred()]

    def worst_halt(self) -> tuple[Halt | None, str]:
        """Return the halt that decides the pass's exit code, and its reason."""
        if self.is_interrupted:
            return Halt.INTERRUPTED, ""
        for halt in (Halt.REFUSED, Halt.DOWN, Halt.NO_RESOURCES, Halt.BUSY):
            for name, each in self._by_name.items():
                if each.halt is halt:
                    is_only = len(self._by_name) == 1
                    return halt, each.halt_reason if is_only else f"{name}: {each.halt_reason}"
        return None, ""
