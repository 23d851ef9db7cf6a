-- environment_sets: one row per set of environments that plans ran in. Read by: filters and axes of
-- charts; a dimension that runs, tests and plans join by environment_signature.
CREATE VIEW {reporting}environment_sets AS
SELECT combinations.environment_signature, combinations.environments,
       combinations.environment_count, combinations.os, combinations.browser,
       combinations.device, combinations.viewport
  FROM environment_combinations AS combinations
