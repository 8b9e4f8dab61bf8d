"""Signers: one Protocol (``stores/protocols.py``), one contract suite (``tests/contract/test_signers.py``)."""
