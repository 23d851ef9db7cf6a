-- pass_rate_by_application: one row per application. Counts test results, not checks.
-- pass_rate = passed / (passed + failed), NULL when nothing is decided; decided_share = decided
-- results / results with a documented status. Unknown words are not counted (docs/REPORTS.md).
SELECT coalesce(trim(runs.application), '-') AS application,
       count(DISTINCT runs.run_id) AS runs,
       sum(CASE WHEN tests.status = 'passed' THEN 1 ELSE 0 END) AS passed,
       sum(CASE WHEN tests.status = 'failed' THEN 1 ELSE 0 END) AS failed,
       1.0 * sum(CASE WHEN tests.status = 'passed' THEN 1 ELSE 0 END)
           / nullif(sum(CASE WHEN tests.status IN ('passed', 'failed') THEN 1 ELSE 0 END), 0)
           AS pass_rate,
       1.0 * sum(CASE WHEN tests.status IN ('passed', 'failed') THEN 1 ELSE 0 END)
           / nullif(sum(CASE WHEN tests.status IN
                 ('passed', 'failed', 'aborted', 'unresolved', 'pending') THEN 1 ELSE 0 END), 0)
           AS decided_share
  FROM runs JOIN tests ON tests.run_id = runs.run_id
 GROUP BY 1
 ORDER BY 1
