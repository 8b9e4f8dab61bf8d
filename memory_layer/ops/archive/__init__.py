"""The audit archive: segments of the log, locked in the object store; restoring a log from them; and the drill of that."""
