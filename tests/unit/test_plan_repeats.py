"""The applications whose test ids can be compared, since their plans run again."""

from etl.derived.plans import Application, Plan
from etl.ingest.plan_repeats import MOST_PLANS, PlanRepeats

LOGIN, SEARCH = Plan("default", "Shop", "Login"), Plan("default", "Shop", "Search")
OTHER = Plan("default", "Office", "Login")
SHOP, OFFICE = Application("default", "Shop"), Application("default", "Office")


def test_one_run_of_each_plan_cannot_be_compared() -> None:
    assert PlanRepeats().add([LOGIN, SEARCH, OTHER]) == set()


def test_a_repeat_counts_in_one_batch_and_over_several() -> None:
    repeats = PlanRepeats()
    assert repeats.add([LOGIN, LOGIN, OTHER]) == {SHOP}
    assert repeats.add([OTHER]) == {OFFICE}


def test_an_application_is_measured_ever_less_often() -> None:
    repeats = PlanRepeats()
    repeats.add([LOGIN, SEARCH])
    measured = [number for number in range(1, 101) if repeats.add([LOGIN])]
    assert measured == [1, 2, 4, 8, 16, 32, 64]


def test_the_plans_remembered_are_limited() -> None:
    repeats = PlanRepeats()
    repeats.add(Plan("default", "Shop", f"plan {number}") for number in range(MOST_PLANS))
    assert repeats.add([LOGIN, LOGIN]) == set()
    assert repeats.add([Plan("default", "Shop", "plan 0")]) == {SHOP}
