"""Measurements: each is a ratio against a baseline of the same run (docs/PERFORMANCE.md)."""
