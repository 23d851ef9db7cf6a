-- schema_drift: one row per field, type, status or counter that the API had not shown before. Read
-- by: operators of the archiver. Times are UTC.
CREATE VIEW {reporting}schema_drift AS
SELECT drift.path, drift.json_type, tracked_runs.source, drift.first_seen_at, drift.first_run_id
  FROM drift
  LEFT JOIN tracked_runs ON tracked_runs.run_id = drift.first_run_id
