"""One request to one outcome: the only wing that talks to the API."""
