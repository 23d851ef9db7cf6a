"""A simulation of the vendor's API on loopback, whose runs progress as real ones do."""
