"""Reports as one HTML file for people who were sent it: no scripts, nothing loaded.

`charts` makes chart specifications, `sections` assigns charts and explanations to reports, `cells`
formats values, `document` renders the file.
"""
