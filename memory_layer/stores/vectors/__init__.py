"""Vector stores: one Protocol (``stores/protocols.py``), one contract suite (``tests/contract/test_vectors.py``)."""
