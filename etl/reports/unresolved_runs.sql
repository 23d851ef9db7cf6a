-- unresolved_runs: one row per run that waits for a person, the oldest first; at most `rows`.
-- ended_at is UTC; tests counts its unresolved tests.
SELECT trim(runs.application) AS application, trim(runs.name) AS plan, runs.ended_at,
       sum(CASE WHEN tests.status = 'unresolved' THEN 1 ELSE 0 END) AS tests, runs.run_id
  FROM runs LEFT JOIN tests ON tests.run_id = runs.run_id
 WHERE runs.status = 'unresolved'
 GROUP BY runs.run_id, runs.application, runs.name, runs.ended_at
 ORDER BY runs.ended_at, runs.run_id
 LIMIT :rows
