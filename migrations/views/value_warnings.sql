-- value_warnings: one row per value of an answer that could not be read. Read by: operators of the
-- archiver. The column of the value is NULL or has a substitute; the payload has the original. Times
-- are UTC.
CREATE VIEW {reporting}value_warnings AS
SELECT warnings.run_id, warnings.revision, warnings.path, runs.source, warnings.reason,
       warnings.value, revisions.observed_at, revisions.superseded_at
  FROM warnings
  JOIN revisions ON revisions.run_id = warnings.run_id AND revisions.revision = warnings.revision
  JOIN runs ON runs.run_id = warnings.run_id
