"""Hold the derived tables against the payloads they came from, and make them anew.

Works through the archive in batches of runs, each in a transaction of its own: memory stays
bounded, and whatever interrupts it, the next call goes on, since what agrees is left alone.
What is in a cell is taken for nothing but itself: a damaged one is named, whatever it holds.
"""

import hashlib
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, tzinfo
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import zstandard
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    Table,
    and_,
    delete,
    exists,
    func,
    select,
    true,
)
from sqlalchemy.exc import DataError, DBAPIError

from etl.answers.compression import decompress
from etl.answers.normalize import normalize
from etl.answers.payload import COUNTERS, decode
from etl.answers.rows import ECHO_WARNING
from etl.archive.history import DERIVED, Owner, Row, Stretch, derived, outcome_of
from etl.config.settings import DEFAULT_RULES, Rules
from etl.db import bulk
from etl.db.database import reading, writing
from etl.db.schema import (
    IS_CURRENT,
    daily_results,
    labels,
    metadata,
    outcomes,
    payloads,
    plan_variants,
    rejects,
    rosters,
    runs,
    to_milliseconds,
    to_text,
    tracked_runs,
)
from etl.derived import aggregates, refresh
from etl.derived.identity_rules import id_keyed_applications

BATCH_RUNS = 50
BATCH_BYTES = 1_048_576
"""How much of unpacked bodies a batch has at most, unless it is a single run."""

REKEYED = ("roster_id", "outcomes")
"""The columns of `outcomes` that depend on how tests are known."""
TABLES = [metadata.tables[name] for name in DERIVED]
NAMES = (plan_variants, rosters)


class Difference(NamedTuple):
    """A place where the archive is not what its payloads say; `row` is the rest of its key.

    Of what several runs share, such as a series, `run_id` is "" and `row` the whole key.
    """

    table: str
    run_id: str
    row: str
    problem: str

    def __str__(self) -> str:
        run = f"run {self.run_id}" if self.run_id else ""
        where = ", ".join(filter(None, [run, self.row]))
        return f"{self.table} ({where}): {self.problem}"


class Checked(NamedTuple):
    """What was found in a batch of runs.

    `damage` is what no replay mends: payloads that are not what was received, and what belongs to
    no payload; `differing` are derived rows that are not what their payloads say; `mismatches`
    are the vendor's own: a run's counters that are not the sum of its tests'.
    """

    runs: int
    damage: list[Difference]
    differing: list[Difference]
    mismatches: list[Difference]


class _Kept(NamedTuple):
    """A row of `payloads` as the driver gives it, whatever types its cells have by now."""

    run_id: Any
    revision: Any
    body: Any
    encoding: Any
    size: Any
    sha256: Any
    fetched_at: Any
    last_seen_at: Any


class _Batch(NamedTuple):
    """What the payloads of some runs say: derived rows by table, of the runs that are whole."""

    whole: list[str]
    rows: dict[str, list[Row]]
    names: dict[str, dict[Row, Row]]
    """What `outcomes` refers to: rows of the tables NAMES by key."""
    damage: list[Difference]


def verify(engine: Engine, zone: tzinfo, rules: Rules = DEFAULT_RULES) -> Iterator[Checked]:
    """Check all runs, a batch at a time, then what is counted of each plan, then loose ends."""
    for run_ids in _batches(engine):
        with _snapshot(engine) as connection:
            batch = _expected(connection, run_ids, zone)
            differing = [*_compare(connection, batch), *_compare_names(connection, batch)]
        mismatches = _mismatches(batch.rows["counts"])
        yield Checked(len(run_ids), batch.damage, differing, mismatches)
    for plan_id in _plan_ids(engine):
        with _snapshot(engine) as connection:
            try:
                differing = _compare_plan(connection, plan_id, rules)
            except (ArithmeticError, LookupError, TypeError, ValueError, DataError):
                # Which cell it is was told with its run.
                differing = [Difference("outcomes", "", f"plan_id {plan_id}", "cannot be counted")]
        yield Checked(0, [], differing, [])
    yield _loose_ends(engine)


def replay(engine: Engine, zone: tzinfo, rules: Rules = DEFAULT_RULES) -> Iterator[Checked]:
    """Rebuild the runs that differ from their payloads, a batch at a time; tell what differed.

    Then the same with what is counted of each plan. What belongs to no payload, and runs whose
    payloads are damaged, are left as they are.
    """
    for run_ids in _batches(engine):
        yield _mend_runs(engine, run_ids, zone)
    for plan_id in _plan_ids(engine):
        yield _mend_plan(engine, plan_id, rules)
    yield _loose_ends(engine)


def lacks_counts(engine: Engine) -> bool:
    """Tell whether there are runs or plans that reports know nothing of.

    So there are in an archive from before they were counted, until a whole `replay` has come by.
    """
    is_kept = exists().where(outcomes.c.run_id == runs.c.run_id)
    dated = (
        select(plan_variants.c.plan_id)
        .join(outcomes, outcomes.c.variant_id == plan_variants.c.variant_id)
        .where(IS_CURRENT, outcomes.c.started_on.is_not(None))
        .where(plan_variants.c.plan_id.not_in(select(daily_results.c.plan_id)))
    )
    with reading(engine) as connection:
        return any(
            connection.execute(query.limit(1)).first()
            for query in (select(runs.c.run_id).where(~is_kept), dated)
        )


def rekey_application(engine: Engine, application: str, zone: tzinfo) -> None:
    """Name the tests of an application's runs anew, which are known by other keys than before.

    Its series are marked to be counted anew.
    """
    with reading(engine) as connection:
        plans = aggregates.plan_ids_of(connection, application)
    for plan_id in plans:
        for run_ids in _batches(engine, payloads.c.run_id.in_(_runs_of_plan(plan_id))):
            _rekey_runs(engine, run_ids, zone)
        with writing(engine) as connection:
            refresh.mark_plan(connection, plan_id)


def _rekey_runs(engine: Engine, run_ids: Sequence[str], zone: tzinfo) -> None:
    """Write what the keys of tests decide: lists of tests, and the order of outcomes in them."""
    with writing(engine) as connection:
        _hold(connection, run_ids)
        batch = _expected(connection, run_ids, zone)
        _put_names(connection, batch)
        given = [*REKEYED, *outcomes.primary_key.columns.keys()]
        places = [outcomes.columns.keys().index(name) for name in given]
        rows = [tuple(row[place] for place in places) for row in batch.rows[outcomes.name]]
        bulk.update(connection, outcomes, REKEYED, rows)


def _mend_runs(engine: Engine, run_ids: Sequence[str], zone: tzinfo) -> Checked:
    with writing(engine) as connection:
        _hold(connection, run_ids)
        batch = _expected(connection, run_ids, zone)
        misnamed = _compare_names(connection, batch)
        _put_names(connection, batch)
        differing = _compare(connection, batch)
        _replace(connection, batch, {difference.run_id for difference in differing})
    return Checked(len(run_ids), batch.damage, [*differing, *misnamed], [])


def _mend_plan(engine: Engine, plan_id: str, rules: Rules) -> Checked:
    with writing(engine) as connection:
        refresh.hold(connection, [plan_id])
        differing = _compare_plan(connection, plan_id, rules)
        if differing or aggregates.uncounted_variants(connection, plan_id):
            wanted = aggregates.expected(connection, plan_id, rules)
            aggregates.replace(connection, plan_id, wanted)
    return Checked(0, [], differing, [])


def _runs_of_plan(plan_id: str) -> Select[tuple[str]]:
    """Return the query for the runs that were ever of a plan."""
    return (
        select(outcomes.c.run_id)
        .join(plan_variants, plan_variants.c.variant_id == outcomes.c.variant_id)
        .where(plan_variants.c.plan_id == plan_id)
    )


def _plan_ids(engine: Engine) -> list[str]:
    with reading(engine) as connection:
        return aggregates.plan_ids(connection)


def _compare_plan(connection: Connection, plan_id: str, rules: Rules) -> list[Difference]:
    """Hold what is counted of a plan against its outcomes."""
    uncounted = aggregates.uncounted_variants(connection, plan_id)
    expected = aggregates.expected(connection, plan_id, rules)
    differing: list[Difference] = []
    for table in aggregates.AGGREGATES:
        wanted = bulk.storable(connection, table.columns, expected[table.name])
        try:
            found = aggregates.stored(connection, plan_id, table)
        except DBAPIError as error:
            place = f"plan_id {plan_id}"
            differing.append(Difference(table.name, "", place, _unreadable(error)))
            continue
        if "variant_id" in table.c:
            # A pass was interrupted before it counted these: the next one does.
            wanted, found = (
                [row for row in rows if row[0] not in uncounted] for rows in (wanted, found)
            )
        differing += _compare_shared(table, _by_key(table, wanted), _by_key(table, found))
    return differing


def _compare_names(connection: Connection, batch: _Batch) -> list[Difference]:
    """Hold the plans and lists of tests that outcomes refer to against what answers say."""
    return [
        difference
        for table in NAMES
        for difference in _compare_shared(
            table, batch.names[table.name], _stored_names(connection, table, batch)
        )
    ]


def _stored_names(connection: Connection, table: Table, batch: _Batch) -> dict[Row, Row]:
    [column] = table.primary_key.columns
    keys = [key for [key] in batch.names[table.name]]
    return _by_key(table, bulk.read(connection, table, keys, column.name))


def _put_names(connection: Connection, batch: _Batch) -> None:
    """Write those names that are missing or not as they should be."""
    for table in NAMES:
        stored = _stored_names(connection, table, batch)
        columns = [column.name for column in table.columns]
        fresh = [
            dict(zip(columns, row, strict=True))
            for key, row in sorted(batch.names[table.name].items())
            if stored.get(key) != row
        ]
        if fresh:
            insert = bulk.upsert_into(connection, table)
            [key_column] = table.primary_key.columns
            changes = {name: insert.excluded[name] for name in columns if name != key_column.name}
            connection.execute(
                insert.on_conflict_do_update(index_elements=[key_column], set_=changes), fresh
            )


def _compare_shared(
    table: Table, wanted: Mapping[Row, Row], found: Mapping[Row, Row]
) -> Iterator[Difference]:
    """Compare rows that are of no single run."""
    names = [column.name for column in table.primary_key]
    for key in sorted(wanted.keys() | found.keys(), key=repr):
        problem = _row_problem(table, wanted.get(key), found.get(key))
        if problem:
            place = ", ".join(f"{name} {value}" for name, value in zip(names, key, strict=True))
            yield Difference(table.name, "", place, problem)


def _batches(engine: Engine, chosen: ColumnElement[bool] | None = None) -> Iterator[list[str]]:
    """Yield the archived runs, or the `chosen`, by their IDs, as many as are read at once."""
    query = (
        select(
            payloads.c.run_id,
            func.max(payloads.c.size),
            func.max(func.length(payloads.c.body)),
            func.count(),
        )
        .where(true() if chosen is None else chosen)
        .group_by(payloads.c.run_id)
        .order_by(payloads.c.run_id)
        .limit(BATCH_RUNS)
    )
    following = query
    while True:
        with reading(engine) as connection:
            found = [tuple(row) for row in connection.execute(following)]
        if not found:
            return
        bytes_until = accumulate(_most_bytes(*sizes) for _run_id, *sizes in found)
        fitting = sum(total <= BATCH_BYTES for total in bytes_until)
        run_ids = [run_id for run_id, *_sizes in found[: max(fitting, 1)]]
        yield run_ids
        following = query.where(payloads.c.run_id > run_ids[-1])


def _most_bytes(unpacked: Any, packed: int | None, bodies: int) -> int:
    """Return what a run's bodies take in memory at the most; `unpacked` may be damaged."""
    known = [size for size in (unpacked, packed) if isinstance(size, int)]
    return max(known, default=0) * bodies


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    """Give a connection that sees the archive as it is now, whoever writes to it meanwhile."""
    with reading(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        yield connection


def _hold(connection: Connection, run_ids: Sequence[str]) -> None:
    """Let nobody else store answers of these runs until the commit: see `ledger.held`."""
    query = select(tracked_runs.c.run_id).where(tracked_runs.c.run_id.in_(run_ids))
    connection.execute(query.order_by(tracked_runs.c.run_id).with_for_update())


def _expected(connection: Connection, run_ids: Sequence[str], zone: tzinfo) -> _Batch:
    """Return what the payloads of `run_ids` and their ledger rows make of them."""
    owners, unowned = _owners(connection, run_ids)
    kept, unreadable = _read(connection, payloads, run_ids)
    id_keyed = id_keyed_applications(connection)
    rows: dict[str, list[Row]] = {table.name: [] for table in TABLES}
    batch = _Batch([], rows, {table.name: {} for table in NAMES}, [*unowned, *unreadable])
    for run_id, group in groupby(map(_Kept._make, kept), key=lambda row: row.run_id):
        stretches, damage = _stretches(list(group), zone)
        batch.damage.extend(damage)
        if run_id in owners and not damage:
            batch.whole.append(run_id)
            for name, own in derived(owners[run_id], stretches, id_keyed).items():
                batch.rows[name] += own
            for stretch in stretches:
                _note_names(batch, stretch, id_keyed)
    return batch


def _note_names(batch: _Batch, stretch: Stretch, id_keyed: Collection[str]) -> None:
    outcome = outcome_of(stretch.rows, id_keyed)
    named = {plan_variants: outcome.variant, rosters: outcome.roster}
    for table, row in named.items():
        batch.names[table.name][row[:1]] = row


def _owners(
    connection: Connection, run_ids: Sequence[str]
) -> tuple[dict[str, Owner], list[Difference]]:
    """Return what the ledger says of runs, and where it says nothing that can be understood."""
    rows, damage = _read(connection, tracked_runs, run_ids)
    names = [column.name for column in tracked_runs.columns]
    owners = {}
    for row in rows:
        tracked = dict(zip(names, row, strict=True))
        run_id = tracked["run_id"]
        try:
            gone_at = _moment("gone_at", tracked["gone_at"])
        except ValueError as error:
            damage.append(Difference("tracked_runs", run_id, "", str(error)))
        else:
            owners[run_id] = Owner(run_id, tracked["source"], gone_at)
    return owners, damage


def _read(
    connection: Connection, table: Table, run_ids: Sequence[str]
) -> tuple[list[Row], list[Difference]]:
    """Return the rows of runs; those of a run with a cell that no driver can read are told."""
    try:
        return bulk.read(connection, table, run_ids), []
    except DBAPIError as error:
        problem = _unreadable(error)
        if len(run_ids) == 1:
            return [], [Difference(table.name, run_ids[0], "", problem)]
    one_by_one = [_read(connection, table, [run_id]) for run_id in run_ids]
    return [row for rows, _ in one_by_one for row in rows], [
        difference for _, differences in one_by_one for difference in differences
    ]


def _unreadable(error: DBAPIError) -> str:
    """Say that a cell cannot be read; raise `error` again if it is no cell's fault."""
    # It is that of bytes that are no text, and of a time beyond Python's.
    if not isinstance(error, DataError) and "Could not decode" not in str(error.orig):
        raise error
    [reason, *_more] = str(error.orig).splitlines()
    return f"cannot be read: {reason}"


def _stretches(kept: Sequence[_Kept], zone: tzinfo) -> tuple[list[Stretch], list[Difference]]:
    """Return a run's contents in their order, and what is wrong with its payloads."""
    stretches: list[Stretch] = []
    damage: list[Difference] = []
    for number, row in enumerate(kept, start=1):
        try:
            stretches.append(_stretch(row, zone))
        except (ValueError, zstandard.ZstdError) as error:
            damage.append(_in_payload(row, str(error)))
        if row.revision != number:
            damage.append(_in_payload(row, f"revision {number} is missing before it"))
        if (row.last_seen_at is None) != (number == len(kept)):
            damage.append(_in_payload(row, "last_seen_at does not fit its place in the history"))
    if not damage:
        damage += [
            _in_payload(row, "its times do not end where those of the next revision begin")
            for row, (old, new) in zip(kept, pairwise(stretches), strict=False)
            if old.last_seen_at and not old.observed_at <= old.last_seen_at <= new.observed_at
        ]
    return stretches, damage


def _stretch(row: _Kept, zone: tzinfo) -> Stretch:
    """Return what a payload says. Raises ValueError: it is not what was kept, or not readable."""
    fetched_at = _moment("fetched_at", row.fetched_at)
    if fetched_at is None:
        raise ValueError("fetched_at is missing")
    last_seen_at = _moment("last_seen_at", row.last_seen_at)
    body = _body(row)
    payload = decode(body)
    rows = normalize(row.run_id, payload, zone)
    if hashlib.sha256(body).hexdigest() != row.sha256:
        if b"***" not in body:
            raise ValueError("its body is not the one that was received: the hashes differ")
        rows.warnings.append(ECHO_WARNING)
    return Stretch(row.revision, fetched_at, last_seen_at, payload.content_hash, rows)


def _body(row: _Kept) -> bytes:
    """Return a payload's bytes. Raises ValueError or ZstdError: they are not those kept."""
    # By the size first, before memory is taken for one that is damaged.
    if not isinstance(row.body, bytes) or zstandard.frame_content_size(row.body) != row.size:
        raise ValueError(f"its body is not of the {_shown(row.size)} bytes that were kept")
    return decompress(row.body, row.encoding)


def _moment(name: str, value: Any) -> datetime | None:
    """Read a time as the driver gives it. Raises ValueError unless it is as we write it."""
    if value is None:
        return None
    with suppress(ValueError, OverflowError):
        is_read = isinstance(value, datetime)
        moment = value if is_read else datetime.fromisoformat(str(value)).replace(tzinfo=UTC)
        if value in {to_text(moment), to_milliseconds(moment)}:
            return moment
    raise ValueError(f"{name} is {_shown(value)}, which is no time as it is kept here")


def _in_payload(row: _Kept, problem: str) -> Difference:
    return Difference("payloads", row.run_id, f"revision {row.revision}", problem)


def _compare(connection: Connection, batch: _Batch) -> list[Difference]:
    """Compare the derived rows of whole runs, cell by cell, as the driver sees them."""
    differences: list[Difference] = []
    lost: set[str] = set()
    for table in TABLES:
        rows, unreadable = _read(connection, table, batch.whole)
        differences += unreadable
        untold = lost | {difference.run_id for difference in unreadable}
        wanted = _by_key(table, bulk.storable(connection, table.columns, batch.rows[table.name]))
        found = _by_key(table, rows)
        for key in sorted(wanted.keys() | found.keys(), key=repr):
            problem = _row_problem(table, wanted.get(key), found.get(key))
            if problem and key[0] not in untold:
                differences.append(Difference(table.name, key[0], _place(table, key), problem))
        if table.name == "runs":
            # Of a run that is missing, its other rows need not be told one by one.
            lost = {key[0] for key in wanted.keys() - found.keys()}
    return differences


def _place(table: Table, key: Row) -> str:
    """Return where a row stands among those of its run."""
    names = [column.name for column in table.primary_key]
    return ", ".join(f"{name} {value}" for name, value in zip(names[1:], key[1:], strict=True))


def _by_key(table: Table, rows: Sequence[Row]) -> dict[Row, Row]:
    keys = [list(table.columns).index(column) for column in table.primary_key]
    return {tuple(row[index] for index in keys): row for row in rows}


def _row_problem(table: Table, wanted: Row | None, found: Row | None) -> str | None:
    if found is None:
        return "is missing"
    if wanted is None:
        return "is in no payload"
    for column, should_be, is_now in zip(table.columns, wanted, found, strict=True):
        if should_be != is_now:
            return f"{column.name} is {_shown(is_now)}, should be {_shown(should_be)}"
    return None


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


def _shown(value: Any) -> str:
    """Return a cell for people, the middle of a long one left out."""
    return str(value) if isinstance(value, date) else _SHORT.repr(value)


def _mismatches(count_rows: Sequence[Row]) -> list[Difference]:
    """Hold each run's own counters against the sum of its tests' counters."""
    found = []
    for run_id, group in groupby(count_rows, key=lambda row: row[0]):
        own, *tests = group
        for index, name in enumerate(COUNTERS, start=3):
            values = [row[index] for row in tests]
            is_known = tests and own[index] is not None and None not in values
            if is_known and own[index] != sum(values):
                problem = f"{name} is {own[index]}, its tests have {sum(values)}"
                found.append(Difference("counts", run_id, "", problem))
    return found


def _replace(connection: Connection, batch: _Batch, run_ids: set[str]) -> None:
    for table in reversed(TABLES):
        connection.execute(delete(table).where(table.c.run_id.in_(run_ids)))
    for table in TABLES:
        rows = [row for row in batch.rows[table.name] if row[0] in run_ids]
        bulk.insert(connection, table, rows)


def _loose_ends(engine: Engine) -> Checked:
    """Find what no payload or no ledger row stands behind."""
    with _snapshot(engine) as connection:
        found = [*_strays(connection), *_orphans(connection), *_ledger_faults(connection)]
    return Checked(0, found, [], [])


def _strays(connection: Connection) -> Iterator[Difference]:
    """Find rows of runs that have no payload."""
    archived = select(payloads.c.run_id)
    for table in TABLES:
        query = select(table.c.run_id).where(table.c.run_id.not_in(archived)).distinct()
        for run_id in connection.scalars(query.order_by(table.c.run_id)):
            yield Difference(table.name, str(run_id), "", "has no payload")


def _orphans(connection: Connection) -> Iterator[Difference]:
    """Find rows of runs that the ledger does not have, as no foreign key would let them be."""
    tracked = select(tracked_runs.c.run_id)
    for table in (labels, payloads, rejects):
        query = select(table.c.run_id).where(table.c.run_id.not_in(tracked)).distinct()
        for run_id in connection.scalars(query.order_by(table.c.run_id)):
            yield Difference(table.name, str(run_id), "", "is of a run that is not tracked")


def _ledger_faults(connection: Connection) -> Iterator[Difference]:
    """Find runs that the ledger and the archive tell different stories of."""
    newest = (
        select(payloads.c.run_id, func.max(payloads.c.fetched_at).label("at"))
        .group_by(payloads.c.run_id)
        .subquery()
    )
    fetched_at = tracked_runs.c.last_fetched_at
    stories = {
        "was fetched, yet is not archived": and_(newest.c.at.is_(None), fetched_at.is_not(None)),
        "is archived, yet was never fetched": and_(newest.c.at.is_not(None), fetched_at.is_(None)),
        "last_fetched_at is before its newest payload": fetched_at < newest.c.at,
    }
    joined = select(tracked_runs.c.run_id).outerjoin(
        newest, newest.c.run_id == tracked_runs.c.run_id
    )
    for problem, is_so in stories.items():
        for run_id in connection.scalars(joined.where(is_so).order_by(tracked_runs.c.run_id)):
            yield Difference("tracked_runs", run_id, "", problem)
