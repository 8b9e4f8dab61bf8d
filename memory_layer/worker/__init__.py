"""The worker: brings written rows into the index and runs the periodic jobs, until it is stopped."""
