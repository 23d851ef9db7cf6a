-- unresolved_backlog: one row per run that has unresolved tests now. Read by: the people who decide
-- them. Counts are of tests, rates from 0 to 1. Times are UTC. The age is that at the time of the
-- query: now - opened_at; a lower bound is last_seen_at - opened_at. Runs without such a test are
-- omitted.
CREATE VIEW {reporting}unresolved_backlog AS
SELECT outcomes.run_id, runs.source, plan_variants.application, plan_variants.plan, outcomes.status,
       outcomes.started_at, outcomes.started_on, runs.iso_date,
       outcomes.opened_at, outcomes.observed_at,
       tracked_runs.last_fetched_at AS last_seen_at, age_buckets.name AS age_bucket, runs.test_count,
       outcomes.tests_unresolved, outcomes.tests_failed, outcomes.tests_passed,
       outcomes.pass_rate_low, outcomes.pass_rate_high, runs.environment_signature, runs.gone_at,
       tests.results_url, tests.name AS test,
       plan_variants.plan_id, plan_variants.variant_id
  FROM outcomes
  JOIN runs ON runs.run_id = outcomes.run_id
  JOIN tracked_runs ON tracked_runs.run_id = outcomes.run_id
  JOIN plan_variants ON plan_variants.variant_id = outcomes.variant_id
  LEFT JOIN age_buckets
    ON (age_buckets.from_days IS NULL OR age_buckets.from_days <= {age_in_days})
       AND (age_buckets.until_days IS NULL OR age_buckets.until_days > {age_in_days})
  LEFT JOIN tests ON tests.run_id = outcomes.run_id
       AND tests.position = (SELECT min(waiting.position) FROM tests AS waiting
                              WHERE waiting.run_id = outcomes.run_id
                                AND waiting.status = 'unresolved')
 WHERE outcomes.superseded_at IS NULL AND outcomes.tests_unresolved > 0
