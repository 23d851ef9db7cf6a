"""The command line: options and help of each command beside what it does."""
