-- environment_results: one row per environment of an archived run. Read by: coverage of browsers,
-- devices and viewports. The API does not say in which environment a test failed: status, duration,
-- counts and rates are those of the whole run. They belong to an environment only if
-- environment_count is 1. Never sum them over the environments of a run. Times are UTC; started_on
-- is the day in reporting.time_zone; viewports are pixels. Runs that list no environment are
-- omitted.
CREATE VIEW {reporting}environment_results AS
SELECT runs.run_id, environments.position,
       runs.source, plan_variants.application, plan_variants.plan,
       environments.name AS environment, environments.os, environments.browser,
       environments.device, environments.viewport,
       environments.viewport_width, environments.viewport_height,
       runs.environment_count, runs.environment_signature,
       runs.status, runs.started_at, runs.started_on, runs.iso_date, runs.started_hour, runs.ended_at,
       runs.duration_ms, runs.test_count,
       outcomes.tests_failed, outcomes.tests_passed, outcomes.tests_aborted,
       outcomes.tests_pending, outcomes.tests_unresolved, outcomes.tests_unknown,
       outcomes.pass_rate, outcomes.pass_rate_strict, outcomes.decided_share,
       outcomes.pass_rate_low, outcomes.pass_rate_high,
       runs.changed_at, runs.row_changed_at,
       branches.value AS branch, commits.value AS commit_id, builds.value AS build,
       plan_variants.plan_id, plan_variants.variant_id
  -- CROSS JOIN: SQLite then begins with runs, which have indexes on the times that are asked for.
  FROM runs
  LEFT JOIN labels AS branches ON branches.run_id = runs.run_id AND branches.name = 'branch'
  LEFT JOIN labels AS commits ON commits.run_id = runs.run_id AND commits.name = 'commit'
  LEFT JOIN labels AS builds ON builds.run_id = runs.run_id AND builds.name = 'build'
 CROSS JOIN environments
  JOIN outcomes ON outcomes.run_id = runs.run_id AND outcomes.revision = runs.revision
       AND outcomes.superseded_at IS NULL
  JOIN plan_variants ON plan_variants.variant_id = outcomes.variant_id
 WHERE environments.run_id = runs.run_id
