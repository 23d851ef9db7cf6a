"""Reports as one HTML file for people who were sent it: no scripts, nothing loaded.

`charts` says what is drawn, `sections` which report has which charts and how it is explained,
`cells` how values are written, `document` puts the file together.
"""
