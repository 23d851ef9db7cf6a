-- plans: one row per plan: its newest and its first run, and its open and flaky tests. Read by:
-- lists of plans; a dimension that each view joins by plan_id. Rates are from 0 to 1, durations
-- milliseconds. Times are UTC; days are those of reporting.time_zone. A new plan is omitted until
-- the pass that archived its first run ends.
CREATE VIEW {reporting}plans AS
SELECT plan_summaries.plan_id, plan_summaries.source, plan_summaries.application,
       plan_summaries.plan,
       plan_summaries.last_started_at, plan_summaries.last_run_id,
       plan_summaries.last_started_on, plan_summaries.iso_date,
       plan_summaries.last_status, plan_summaries.last_pass_rate,
       plan_summaries.first_started_at, plan_summaries.first_run_id,
       plan_summaries.first_status, plan_summaries.first_pass_rate,
       plan_summaries.open_runs, plan_summaries.open_tests, plan_summaries.flaky_tests,
       plan_summaries.p50_ms
  FROM plan_summaries
