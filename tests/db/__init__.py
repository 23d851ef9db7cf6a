"""Tables, statements and derived rows, on both databases."""
