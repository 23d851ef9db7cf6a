"""The tracked runs: their states, due times and leases."""
