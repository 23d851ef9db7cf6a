-- unknown_words: one row per test with a word that is not documented (or none) as its status, in
-- each revision of its run. As it was in a revision, a test is the row of test_revisions with the
-- smallest revision from that one on, else the row of tests. Tests with a documented word in a run
-- that has an unknown one are in it: who reads it leaves them out.
SELECT outcomes.run_id, outcomes.revision, tests.position, tests.status
  FROM outcomes JOIN tests ON tests.run_id = outcomes.run_id
 WHERE outcomes.tests_unknown > 0
   AND NOT EXISTS (
           SELECT 1 FROM test_revisions AS later
            WHERE later.run_id = outcomes.run_id AND later.position = tests.position
              AND later.revision >= outcomes.revision)
UNION ALL
SELECT outcomes.run_id, outcomes.revision, was.position, was.status
  FROM outcomes
  JOIN test_revisions AS was
    ON was.run_id = outcomes.run_id AND was.revision >= outcomes.revision
 WHERE outcomes.tests_unknown > 0 AND NOT was.absent
   AND NOT EXISTS (
           SELECT 1 FROM test_revisions AS nearer
            WHERE nearer.run_id = was.run_id AND nearer.position = was.position
              AND nearer.revision >= outcomes.revision AND nearer.revision < was.revision)
