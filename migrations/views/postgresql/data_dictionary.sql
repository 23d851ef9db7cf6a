-- data_dictionary: one row per view (column_name is empty) and per column of one: what it means.
-- Read by: people who make reports. On SQLite the table of that name is read as it is.
CREATE VIEW {reporting}data_dictionary AS
SELECT data_dictionary.object_name, data_dictionary.column_name, data_dictionary.description
  FROM data_dictionary
