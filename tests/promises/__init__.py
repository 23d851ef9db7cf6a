"""What must hold whatever happens: kills, faults, several processes."""
