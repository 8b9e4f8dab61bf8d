"""What `memoryctl ingest` takes in: files into passages, and the passages that are stored into those that the files have now."""
