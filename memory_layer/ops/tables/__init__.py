"""The verifier's look at the tables beside nodes and artifacts: each row against what the log, its seals and other rows say."""
