-- test_results: one row per test of an archived run, with its current content, its run and its
-- counters (checks, as sent). Read by: all statistics on tests. Times are those of the run, in UTC,
-- since the API gives none for a test; started_on is the day in reporting.time_zone. Nothing is
-- omitted. It joins series_health by series_id: a test has a series there if its run has a start.
CREATE VIEW {reporting}test_results AS
SELECT runs.run_id, tests.position, runs.source, plan_variants.application, plan_variants.plan,
       tests.name AS test, tests.type, tests.status, tests.test_id, tests.sitemap,
       tests.results_url,
       runs.started_at, runs.started_on, runs.iso_date, runs.started_hour,
       runs.environment_count, runs.environment_signature, runs.status AS run_status,
       counts.failed AS checks_failed, counts.passed AS checks_passed,
       counts.aborted AS checks_aborted, counts.pending AS checks_pending,
       counts.unresolved AS checks_unresolved, counts.total AS checks_total,
       runs.changed_at, runs.row_changed_at,
       branches.value AS branch, commits.value AS commit_id, builds.value AS build,
       plan_variants.plan_id, plan_variants.variant_id, 
       {typed_series_id} AS series_id
  -- CROSS JOIN: SQLite then begins with runs, which have indexes on the times that are asked for.
  FROM runs
  LEFT JOIN labels AS branches ON branches.run_id = runs.run_id AND branches.name = 'branch'
  LEFT JOIN labels AS commits ON commits.run_id = runs.run_id AND commits.name = 'commit'
 CROSS JOIN tests
  JOIN counts ON counts.run_id = tests.run_id AND counts.test_position = tests.position
  JOIN outcomes ON outcomes.run_id = runs.run_id AND outcomes.revision = runs.revision
       AND outcomes.superseded_at IS NULL
  JOIN plan_variants ON plan_variants.variant_id = outcomes.variant_id
  LEFT JOIN variant_rosters ON variant_rosters.variant_id = outcomes.variant_id
       AND variant_rosters.roster_id = outcomes.roster_id
  -- Last: beyond 8 tables, PostgreSQL joins in this order, and nobody begins with a build.
  LEFT JOIN labels AS builds ON builds.run_id = runs.run_id AND builds.name = 'build'
 WHERE tests.run_id = runs.run_id
