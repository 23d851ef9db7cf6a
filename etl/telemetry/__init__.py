"""Logs, metrics and pings."""
