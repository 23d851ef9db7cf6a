"""Reports on the archive, by the definitions of `metrics`, now or as of any moment."""
