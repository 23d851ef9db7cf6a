-- runs_by_status: one row per status word, the most frequent first. A run without one is 'none'.
SELECT coalesce(nullif(status, ''), 'none') AS status, count(*) AS runs
  FROM runs
 GROUP BY 1
 ORDER BY 2 DESC, 1
