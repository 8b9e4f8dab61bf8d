"""What operators and the worker do with artifacts: scans, sweeps, manifests."""
