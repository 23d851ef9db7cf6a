"""Files and copies for other programs."""
