-- data_dictionary: one row per view (with an empty column_name) and per column of a view: its
-- meaning, type, kind and unit. Read by: authors of reports. On SQLite, read the table of that name.
CREATE VIEW {reporting}data_dictionary AS
SELECT data_dictionary.object_name, data_dictionary.column_name, data_dictionary.description,
       data_dictionary.type, data_dictionary.kind, data_dictionary.unit
  FROM data_dictionary
