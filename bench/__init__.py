"""``python -m bench``: measures the product as a user runs it and writes the figures into ``docs/benchmarks.md``."""
