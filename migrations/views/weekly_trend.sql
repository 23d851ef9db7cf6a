-- weekly_trend: one row per plan and week. Read by: trend charts. Counts are of tests, checks_...
-- of checks; rates are from 0 to 1. Weeks are ISO 8601 weeks, in reporting.time_zone. Over several
-- rows, sum the counts and divide: never average rates. Weeks without a run have no row (join
-- calendar); runs without started_at are omitted.
CREATE VIEW {reporting}weekly_trend AS
SELECT results.week_starts_on, results.iso_date, results.source, results.application, results.plan,
       results.runs, results.tests,
       results.failed, results.passed, results.aborted,
       results.pending, results.unresolved, results.unknown,
       results.pass_rate, results.pass_rate_strict, results.decided_share,
       results.pass_rate_low, results.pass_rate_high,
       results.checks_failed, results.checks_passed,
       results.checks_aborted, results.checks_pending,
       results.checks_unresolved, results.check_pass_rate,
       results.plan_id
  FROM weekly_results AS results
