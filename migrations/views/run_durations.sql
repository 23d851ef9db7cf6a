-- run_durations: one row per plan under one set of environments: its run times. Read by: lists of
-- slow plans. Durations are milliseconds. Percentiles are by nearest rank, of runs that ended by
-- themselves (passed, failed, unresolved, completed), counted back from the last of these. Times are
-- UTC. Other runs, and runs without started_at, are omitted.
CREATE VIEW {reporting}run_durations AS
SELECT plan_variants.source, plan_variants.application, plan_variants.plan,
       plan_variants.environment_signature,
       durations.measured, durations.p50_ms, durations.p95_ms, durations.p50_per_test_ms,
       durations.p50_last_7_days_ms, durations.p50_28_days_before_ms, durations.change,
       durations.last_run_id, durations.last_started_at, durations.last_duration_ms,
       durations.p95_before_last_ms, durations.is_slow,
       plan_variants.plan_id, plan_variants.variant_id
  FROM durations
  JOIN plan_variants ON plan_variants.variant_id = durations.variant_id
