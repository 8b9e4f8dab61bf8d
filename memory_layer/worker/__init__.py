"""The worker: settles vector rows, and runs the periodic jobs, until it is told to stop."""
