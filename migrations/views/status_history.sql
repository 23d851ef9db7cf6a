-- status_history: one row per change of a run's status (position 0) or a test's that was seen. Read
-- by: what happened to a run or test, and when. Times are UTC, bounds milliseconds. The status that
-- a run or test was first seen with is no change, and left out.
CREATE VIEW {reporting}status_history AS
SELECT status_changes.run_id, status_changes.revision, status_changes.position,
       plan_variants.application, plan_variants.plan, status_changes.test,
       status_changes.from_status, status_changes.to_status,
       status_changes.last_seen_at, status_changes.changed_by, status_changes.opened_at,
       status_changes.resolution_min_ms, status_changes.resolution_max_ms,
       plan_variants.plan_id, plan_variants.variant_id
  FROM status_changes
  JOIN outcomes ON outcomes.run_id = status_changes.run_id
       AND outcomes.revision = status_changes.revision
  JOIN plan_variants ON plan_variants.variant_id = outcomes.variant_id
