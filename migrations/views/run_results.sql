-- run_results: one row per archived run, with its own counters (checks, not tests). Times are UTC;
-- started_on is the day in reporting.time_zone. Runs still going are in it: see status. Names are as
-- the API sent them, leading spaces included: compare them trimmed.
CREATE VIEW {reporting}run_results AS
SELECT runs.run_id, runs.source, runs.application, runs.name AS plan, runs.status,
       runs.started_at, runs.started_on, runs.duration_ms, runs.ended_at,
       runs.environment_count, runs.environment_signature, runs.test_count,
       counts.failed AS checks_failed, counts.passed AS checks_passed,
       counts.aborted AS checks_aborted, counts.pending AS checks_pending,
       counts.unresolved AS checks_unresolved, counts.total AS checks_total, runs.revision, runs.archived_at, runs.changed_at, runs.gone_at
  FROM runs
  JOIN counts ON counts.run_id = runs.run_id AND counts.test_position = 0
