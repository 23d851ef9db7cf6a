-- flaky_tests: one row per flaky series, the least steady first; at most `rows` of them.
-- A series is one test (application, plan, name, type) under one set of environments, over its
-- last `decided_results` decided results. Flaky: 5 or more of them, 2 or more flips, and flips /
-- (results - 1) of 0.3 or more (docs/REPORTS.md).
WITH decided AS (
    SELECT runs.application, runs.name AS plan, tests.name AS test, tests.type AS type,
           runs.environment_signature AS environments, tests.status,
           runs.started_at, runs.run_id, tests.position,
           row_number() OVER (
               PARTITION BY runs.application, runs.name, tests.name, tests.type,
                            runs.environment_signature
               ORDER BY runs.started_at DESC, runs.run_id DESC, tests.position DESC
           ) AS age
      FROM tests JOIN runs ON runs.run_id = tests.run_id
     WHERE tests.status IN ('passed', 'failed') AND runs.started_at IS NOT NULL
), windowed AS (
    SELECT decided.*,
           lag(status) OVER (
               PARTITION BY application, plan, test, type, environments
               ORDER BY started_at, run_id, position
           ) AS status_before
      FROM decided
     WHERE age <= :decided_results
), series AS (
    SELECT application, plan, test, count(*) AS results,
           sum(CASE WHEN status = 'passed' THEN 1 ELSE 0 END) AS passed,
           sum(CASE WHEN status <> status_before THEN 1 ELSE 0 END) AS flips
      FROM windowed
     GROUP BY application, plan, test, type, environments
)
SELECT trim(application) AS application, trim(plan) AS plan, test, results, passed, flips,
       1.0 * flips / (results - 1) AS flip_rate
  FROM series
 WHERE results >= 5 AND flips >= 2 AND 1.0 * flips / (results - 1) >= 0.3
 ORDER BY flip_rate DESC, results DESC, application, plan, test
 LIMIT :rows
