"""One pass over the due runs, and the service that repeats it."""
