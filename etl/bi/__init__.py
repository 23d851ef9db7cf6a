"""Dashboards and queries for BI tools, all made from charts.toml and the data dictionary."""
