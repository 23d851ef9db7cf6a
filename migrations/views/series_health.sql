-- series_health: one row per test of a plan under one set of environments, by its last results (the
-- window: the last reporting.window_results decided results, and those between them). Read by:
-- lists of flaky, failing and recovered tests. Counts are of the test's results, rates from 0 to 1.
-- Times are UTC. Tests without a run with a known start are omitted.
CREATE VIEW {reporting}series_health AS
SELECT series.series_id, plan_variants.source, plan_variants.application, plan_variants.plan,
       series.test, series.type, series.test_id, series.test_key,
       plan_variants.environment_signature,
       series.decided, series.failed, series.passed, series.aborted, series.pending,
       series.unresolved, series.pass_rate, series.pass_rate_strict, series.decided_share,
       series.pass_rate_low, series.pass_rate_high, series.flips, series.flip_rate, series.health,
       series.is_flaky, series.is_confirmed_flaky, series.is_regression, series.is_new_failure,
       series.is_always_failing, series.is_recovered,
       series.recent, series.last_status, series.last_run_id, series.last_started_at,
       series.fail_streak, series.streak_since, series.streak_since_run_id,
       series.last_flip_at, series.last_flip_run_id, series.window_starts_at,
       series.first_seen_on, series.iso_date, plan_variants.plan_id, plan_variants.variant_id
  FROM series
  JOIN plan_variants ON plan_variants.variant_id = series.variant_id
