"""The passes, with the counts of a running or killed one up to now."""

from typing import Any

from sqlalchemy import Connection, func, select

from etl.db.schema import OUTCOMES, ingests, pass_workers


def read_passes(connection: Connection, most: int | None) -> list[dict[str, Any]]:
    """Return the rows of the newest passes in `ingests`, newest first, `most` at most.

    A pass counts its runs there when it ends; until then the rows of its workers have them.
    """
    query = select(ingests).order_by(ingests.c.id.desc()).limit(most)
    passes = [dict(row) for row in connection.execute(query).mappings()]
    has_not_ended = select(ingests.c.id).where(ingests.c.finished_at.is_(None))
    names = (*OUTCOMES, "requests")
    counted = connection.execute(
        select(pass_workers.c.pass_id, *[func.sum(pass_workers.c[name]) for name in names])
        .where(pass_workers.c.pass_id.in_(has_not_ended))
        .group_by(pass_workers.c.pass_id)
    )
    # PostgreSQL's sums are decimal.
    so_far = {pass_id: dict(zip(names, map(int, sums), strict=True)) for pass_id, *sums in counted}
    return [each | so_far.get(each["id"], {}) for each in passes]
