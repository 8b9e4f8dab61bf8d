"""The audit archive: segments of the log under a lock in the object store, the way back from them, and its rehearsal."""
