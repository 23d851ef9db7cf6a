-- failed_runs: one row per tracked run that the archiver gave up. Read by: operators of the archiver,
-- who count the rows by source and reason. Times are UTC. A run that is due again is omitted.
CREATE VIEW {reporting}failed_runs AS
SELECT tracked_runs.run_id, tracked_runs.source, tracked_runs.reason, tracked_runs.failing_since,
       tracked_runs.attempts, tracked_runs.first_tracked_at, tracked_runs.last_fetched_at
  FROM tracked_runs
 WHERE tracked_runs.state = 'failed'
