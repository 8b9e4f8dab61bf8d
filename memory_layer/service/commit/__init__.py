"""The only way to write: every write becomes a Change, waits a moment in the queue, and commits in a batch with its own audit entry.

``action.py`` what a write says of itself, ``queue.py`` who waits, ``batch.py`` decisions and entries without I/O, ``transaction.py`` one batch in
one transaction. Nothing in here knows a kind of write: those are in ``service/actions/``.
"""

from memory_layer.service.commit.action import Action, Change, Effect, Idempotency
from memory_layer.service.commit.batch import Outcome
from memory_layer.service.commit.queue import Committer, request_hash

__all__ = ["Action", "Change", "Committer", "Effect", "Idempotency", "Outcome", "request_hash"]
