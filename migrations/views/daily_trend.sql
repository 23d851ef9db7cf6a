-- daily_trend: one row per plan and day. Read by: trend charts. Counts are of tests, checks_... of
-- checks; rates are from 0 to 1. The day is that of started_at in reporting.time_zone. Over several
-- rows, sum the counts and divide: never average rates. Days without a run have no row (join
-- calendar); runs without started_at are omitted.
CREATE VIEW {reporting}daily_trend AS
SELECT results.day, results.iso_date, results.source, results.application, results.plan,
       results.runs, results.tests,
       results.failed, results.passed, results.aborted,
       results.pending, results.unresolved, results.unknown,
       results.pass_rate, results.pass_rate_strict, results.decided_share,
       results.pass_rate_low, results.pass_rate_high,
       results.checks_failed, results.checks_passed,
       results.checks_aborted, results.checks_pending,
       results.checks_unresolved, results.check_pass_rate,
       results.plan_id
  FROM daily_results AS results
