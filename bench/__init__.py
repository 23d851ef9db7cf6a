"""Simulations and measurements: each prints its result beside that of an alternative."""
