"""Tables, types, bulk statements and the connection."""
