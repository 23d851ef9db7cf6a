"""Which runs are tracked, what is due, who holds it."""
