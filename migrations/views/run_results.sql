-- run_results: one row per archived run, with its current content. Read by: all statistics on runs.
-- tests_... and the rates count tests; checks_... are the run's own counters of checks, as sent.
-- Durations are milliseconds, rates from 0 to 1. Times are UTC; started_on is the day in
-- reporting.time_zone. Nothing is omitted: runs that are not over (see status) and gone runs are
-- included.
CREATE VIEW {reporting}run_results AS
SELECT runs.run_id, runs.source, plan_variants.application, plan_variants.plan, runs.status,
       runs.started_at, runs.started_on, runs.iso_date, runs.started_hour,
       runs.duration_ms, runs.ended_at,
       runs.environment_count, runs.environment_signature, runs.test_count,
       outcomes.tests_failed, outcomes.tests_passed, outcomes.tests_aborted,
       outcomes.tests_pending, outcomes.tests_unresolved, outcomes.tests_unknown,
       outcomes.pass_rate, outcomes.pass_rate_strict, outcomes.decided_share,
       outcomes.pass_rate_low, outcomes.pass_rate_high,
       counts.failed AS checks_failed, counts.passed AS checks_passed,
       counts.aborted AS checks_aborted, counts.pending AS checks_pending,
       counts.unresolved AS checks_unresolved, counts.total AS checks_total,
       outcomes.check_pass_rate,
       runs.revision, runs.archived_at, runs.changed_at, runs.row_changed_at, runs.gone_at,
       branches.value AS branch, commits.value AS commit_id, builds.value AS build,
       plan_variants.plan_id, plan_variants.variant_id
  -- CROSS JOIN: SQLite then begins with runs, which have indexes on the times that are asked for.
  FROM runs
  LEFT JOIN labels AS branches ON branches.run_id = runs.run_id AND branches.name = 'branch'
  LEFT JOIN labels AS commits ON commits.run_id = runs.run_id AND commits.name = 'commit'
  LEFT JOIN labels AS builds ON builds.run_id = runs.run_id AND builds.name = 'build'
 CROSS JOIN counts
  JOIN outcomes ON outcomes.run_id = runs.run_id AND outcomes.revision = runs.revision
       AND outcomes.superseded_at IS NULL
  JOIN plan_variants ON plan_variants.variant_id = outcomes.variant_id
 WHERE counts.run_id = runs.run_id AND counts.test_position = 0
