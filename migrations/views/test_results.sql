-- test_results: one row per test of an archived run, with its run and its counters (checks). Times
-- are the run's, UTC: the API tells none for a test.
CREATE VIEW {reporting}test_results AS
SELECT tests.run_id, tests.position, runs.application, runs.name AS plan, tests.name AS test,
       tests.type, tests.status, tests.test_id, tests.results_url,
       runs.started_at, runs.started_on, runs.environment_count, runs.environment_signature,
       runs.status AS run_status,
       counts.failed AS checks_failed, counts.passed AS checks_passed,
       counts.aborted AS checks_aborted, counts.pending AS checks_pending,
       counts.unresolved AS checks_unresolved, counts.total AS checks_total
  FROM tests
  JOIN runs ON runs.run_id = tests.run_id
  JOIN counts ON counts.run_id = tests.run_id AND counts.test_position = tests.position
