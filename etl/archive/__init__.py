"""Answers into tables, with their history; verify and replay."""
