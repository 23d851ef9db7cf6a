-- test_results: one row per test of an archived run, with its run and its counters (checks). Times
-- are the run's, UTC: the API tells none for a test.
CREATE VIEW {reporting}test_results AS
SELECT tests.run_id, tests.position, runs.application, runs.name AS plan, tests.name AS test,
       tests.type, tests.status, tests.test_id, tests.results_url,
       runs.started_at, runs.started_on, runs.environment_count, runs.environment_signature,
       runs.status AS run_status,
       counts.failed, counts.passed, counts.aborted, counts.pending, counts.unresolved,
       counts.total
  FROM tests
  JOIN runs ON runs.run_id = tests.run_id
  JOIN counts ON counts.run_id = tests.run_id AND counts.test_position = tests.position
