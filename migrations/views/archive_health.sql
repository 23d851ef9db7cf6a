-- archive_health: one row per completed pass and account: its figures at the end of the pass. Read
-- by: operators of the archiver. Gaps are milliseconds; times are UTC. Killed passes are omitted.
-- new_fields_7_days and last_success_at are of all accounts: never sum them.
CREATE VIEW {reporting}archive_health AS
SELECT health.pass_id, health.source, health.measured_at, ingests.trigger, ingests.started_at,
       ingests.exit_code,
       health.open_runs, health.open_tests, health.oldest_open_at, health.never_fetched,
       health.failed, health.gone, health.poll_gap_p95_ms, health.new_fields_7_days,
       health.last_success_at
  FROM health
  JOIN ingests ON ingests.id = health.pass_id
