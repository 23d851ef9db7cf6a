"""What the commands do: each function builds, calls, prints, and returns the exit code."""
