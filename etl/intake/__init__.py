"""Run lists and arguments, from bytes to entries."""
