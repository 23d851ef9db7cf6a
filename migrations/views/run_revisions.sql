-- run_revisions: one row per period in which the content of a run was the same: its status and counts
-- then. Read by: comparisons of then and now. As of a moment, a run's row has observed_at <= moment
-- and a superseded_at that is NULL or later. Rates are from 0 to 1, durations milliseconds. Times
-- are UTC. The changes between two rows are in status_history.
CREATE VIEW {reporting}run_revisions AS
SELECT revisions.run_id, revisions.revision,
       plan_variants.source, plan_variants.application, plan_variants.plan, revisions.status,
       revisions.observed_at, revisions.last_seen_at, revisions.superseded_at,
       revisions.started_at, revisions.duration_ms,
       outcomes.tests_failed, outcomes.tests_passed, outcomes.tests_aborted,
       outcomes.tests_pending, outcomes.tests_unresolved, outcomes.tests_unknown,
       outcomes.pass_rate, outcomes.pass_rate_strict, outcomes.decided_share,
       outcomes.pass_rate_low, outcomes.pass_rate_high,
       revisions.failed AS checks_failed, revisions.passed AS checks_passed,
       revisions.aborted AS checks_aborted, revisions.pending AS checks_pending,
       revisions.unresolved AS checks_unresolved, revisions.total AS checks_total,
       plan_variants.plan_id, plan_variants.variant_id
  FROM revisions
  JOIN outcomes ON outcomes.run_id = revisions.run_id AND outcomes.revision = revisions.revision
  JOIN plan_variants ON plan_variants.variant_id = outcomes.variant_id
