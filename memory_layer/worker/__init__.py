"""The worker: settles vector rows until it is told to stop."""
