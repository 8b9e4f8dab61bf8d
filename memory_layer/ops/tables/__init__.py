"""The verifier's check of all tables except nodes and artifacts: each row against what the log, its seals and other rows say."""
