-- resolutions: one row per test that was unresolved and then passed, failed or was aborted:
-- somebody decided it. Read by: statistics on the time until a decision. Bounds are milliseconds;
-- times are UTC. The run's own status is omitted, and so are tests that got another status or left
-- the answer (status_history has them). Open tests are in unresolved_backlog; show them beside any
-- average.
CREATE VIEW {reporting}resolutions AS
SELECT status_changes.run_id, status_changes.revision, status_changes.position,
       plan_variants.source, plan_variants.application, plan_variants.plan, status_changes.test,
       status_changes.from_status, status_changes.to_status, status_changes.changed_by,
       status_changes.opened_at, status_changes.last_seen_at,
       status_changes.resolution_min_ms, status_changes.resolution_max_ms,
       plan_variants.plan_id, plan_variants.variant_id
  FROM status_changes
  JOIN outcomes ON outcomes.run_id = status_changes.run_id
       AND outcomes.revision = status_changes.revision
  JOIN plan_variants ON plan_variants.variant_id = outcomes.variant_id
 WHERE status_changes.from_status = 'unresolved'
   AND status_changes.to_status IN ('passed', 'failed', 'aborted')
   AND status_changes.position > 0
