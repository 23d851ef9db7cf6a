"""One pass over what is due, and the service that repeats it."""
