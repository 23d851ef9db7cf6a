"""The command line: options and help of each command beside its work."""
