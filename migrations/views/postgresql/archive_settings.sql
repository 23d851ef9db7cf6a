-- archive_settings: one row per setting of the archive: its identity, versions, and the settings of
-- derived rows. Read by: dashboards, for the time zone and windows of their figures. On SQLite,
-- read the table of that name.
CREATE VIEW {reporting}archive_settings AS
SELECT archive_settings.name, archive_settings.value, archive_settings.description
  FROM archive_settings
