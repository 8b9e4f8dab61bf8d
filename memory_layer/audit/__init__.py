"""The audit log without a database: entries, seals, the trust root, and the verifier. The format is ``docs/audit-format.md``."""
