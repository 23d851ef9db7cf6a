"""Simulations and measurements: each prints what it found beside what it is compared with."""
