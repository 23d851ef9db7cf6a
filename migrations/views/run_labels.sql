-- run_labels: one row per label of an archived run: said by the run list, such as a branch,
-- a commit or a build. Read by: all statistics that group runs by a label. started_on is the day in
-- reporting.time_zone. Labels of runs that are not archived yet are omitted.
CREATE VIEW {reporting}run_labels AS
SELECT labels.run_id, labels.name, labels.value,
       runs.source, plan_variants.application, plan_variants.plan,
       runs.started_at, runs.started_on, runs.iso_date, runs.row_changed_at,
       plan_variants.plan_id, plan_variants.variant_id
  FROM labels
  JOIN runs ON runs.run_id = labels.run_id
  JOIN outcomes ON outcomes.run_id = runs.run_id AND outcomes.revision = runs.revision
       AND outcomes.superseded_at IS NULL
  JOIN plan_variants ON plan_variants.variant_id = outcomes.variant_id
