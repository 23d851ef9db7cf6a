"""Pure parts, without a database or a process."""
