-- data_dictionary: one row per view (with an empty column_name) and per column of a view: its
-- meaning. Read by: authors of reports. On SQLite, read the table of that name.
CREATE VIEW {reporting}data_dictionary AS
SELECT data_dictionary.object_name, data_dictionary.column_name, data_dictionary.description
  FROM data_dictionary
