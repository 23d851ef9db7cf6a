-- status_history: one row per change of status that was seen, of a run (position 0) or a test. Read
-- by: the history of a run or test. Times are UTC, bounds milliseconds. A test that moved in the
-- answer or was renamed is still the same test. A run's first statuses are omitted.
CREATE VIEW {reporting}status_history AS
SELECT status_changes.run_id, status_changes.revision, status_changes.position,
       status_changes.change, plan_variants.source, plan_variants.application, plan_variants.plan,
       status_changes.test, status_changes.from_status, status_changes.to_status,
       status_changes.changed_by, status_changes.last_seen_at, status_changes.opened_at,
       status_changes.resolution_min_ms, status_changes.resolution_max_ms,
       plan_variants.plan_id, plan_variants.variant_id
  FROM status_changes
  JOIN outcomes ON outcomes.run_id = status_changes.run_id
       AND outcomes.revision = status_changes.revision
  JOIN plan_variants ON plan_variants.variant_id = outcomes.variant_id
