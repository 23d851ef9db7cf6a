-- run_results: one row per archived run, with its own counters (checks, not tests). Times are UTC;
-- started_on is the day in reporting.time_zone. Runs still going are in it: see status.
CREATE VIEW {reporting}run_results AS
SELECT runs.run_id, runs.source, runs.application, runs.name AS plan, runs.status,
       runs.started_at, runs.started_on, runs.duration_ms, runs.ended_at,
       runs.environment_count, runs.environment_signature, runs.test_count,
       counts.failed, counts.passed, counts.aborted, counts.pending, counts.unresolved,
       counts.total, runs.revision, runs.archived_at, runs.changed_at, runs.gone_at
  FROM runs
  JOIN counts ON counts.run_id = runs.run_id AND counts.test_position = 0
