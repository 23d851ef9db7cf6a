"""Reports: what the archive says, by the definitions of `metrics`; now, or as of any moment."""
