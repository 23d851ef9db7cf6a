-- series_health: one row per test of a plan under one set of environments, by its last results (the
-- window: the last reporting.window_results decided results, and those between them). Read by:
-- lists of flaky, failing and recovered tests. Counts are of the test's results, rates from 0 to 1.
-- Times are UTC. Tests without a run with a known start are omitted.
CREATE VIEW {reporting}series_health AS
SELECT series.series_id, plan_variants.source, plan_variants.application, plan_variants.plan,
       series.test, series.type, series.test_id,
       plan_variants.environment_signature,
       metrics.decided, metrics.failed, metrics.passed, metrics.aborted, metrics.pending,
       metrics.unresolved, metrics.pass_rate, metrics.pass_rate_strict, metrics.decided_share,
       metrics.pass_rate_low, metrics.pass_rate_high, metrics.flips, metrics.flip_rate,
       metrics.health,
       metrics.is_flaky, metrics.is_confirmed_flaky, metrics.is_regression,
       metrics.is_new_failure, metrics.is_always_failing, metrics.is_recovered,
       metrics.recent, metrics.last_status, metrics.last_run_id, metrics.last_started_at,
       metrics.fail_streak, metrics.streak_since, metrics.streak_since_run_id,
       metrics.last_flip_at, metrics.last_flip_run_id, metrics.window_starts_at,
       metrics.first_seen_on, metrics.iso_date, plan_variants.plan_id, plan_variants.variant_id
  FROM series
  JOIN series_metrics AS metrics ON metrics.variant_id = series.variant_id
       AND metrics.metrics_id = series.metrics_id
  JOIN plan_variants ON plan_variants.variant_id = series.variant_id
 UNION ALL
-- The tests of a variant's only run have no rows in series.
SELECT {series_id},
       plan_variants.source, plan_variants.application, plan_variants.plan,
       tests.name, tests.type, NULL,
       plan_variants.environment_signature,
       metrics.decided, metrics.failed, metrics.passed, metrics.aborted, metrics.pending,
       metrics.unresolved, metrics.pass_rate, metrics.pass_rate_strict, metrics.decided_share,
       metrics.pass_rate_low, metrics.pass_rate_high, metrics.flips, metrics.flip_rate,
       metrics.health,
       metrics.is_flaky, metrics.is_confirmed_flaky, metrics.is_regression,
       metrics.is_new_failure, metrics.is_always_failing, metrics.is_recovered,
       metrics.recent, metrics.last_status, metrics.last_run_id, metrics.last_started_at,
       metrics.fail_streak, metrics.streak_since, metrics.streak_since_run_id,
       metrics.last_flip_at, metrics.last_flip_run_id, metrics.window_starts_at,
       metrics.first_seen_on, metrics.iso_date, plan_variants.plan_id, plan_variants.variant_id
  FROM plan_variants
  JOIN variant_rosters ON variant_rosters.variant_id = plan_variants.variant_id
  JOIN outcomes ON outcomes.run_id = variant_rosters.only_run_id AND outcomes.superseded_at IS NULL
       AND outcomes.variant_id = variant_rosters.variant_id
       AND outcomes.roster_id = variant_rosters.roster_id
  JOIN tests ON tests.run_id = variant_rosters.only_run_id
  JOIN series_metrics AS metrics ON metrics.variant_id = variant_rosters.variant_id
       AND metrics.recent = substr(outcomes.outcomes, CAST(tests.position AS integer), 1)
