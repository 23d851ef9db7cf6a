"""A stand-in for the vendor's API on loopback, with made-up runs that live as real ones do."""
