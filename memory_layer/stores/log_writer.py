"""The log writer's connection: the only door through which tenants' rows change, always together with the audit log.

``BatchTx`` is one transaction under the log lock: read all that a batch decides on, write its rows, store its entries and seal.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow

from memory_layer import aside
from memory_layer.sql import queries
from memory_layer.stores import batch_rows
from memory_layer.stores.batch_reads import Head, Known, Wants, answered, questions
from memory_layer.stores.batch_rows import RowOp
from memory_layer.stores.log_guard import MAX_KEYS, LogGuard
from memory_layer.stores.pipeline import TIMEOUT, Call, Pipeline, pipeline_of, statements
from memory_layer.stores.postgres import connect, translate_errors

_COMMIT = queries("commit")
_KEYS = queries("keys")
_STATEMENTS = statements("commit")


class SealKey(Protocol):
    """A key that is to seal."""

    @property
    def key_id(self) -> str: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def public_key(self) -> bytes: ...


class Event(NamedTuple):
    """An entry with the columns that stand beside it."""

    seq: int
    id: uuid.UUID
    tenant: str | None
    node: uuid.UUID | None
    artifact: uuid.UUID | None
    type: str
    manifest_signature_id: str | None
    entry: bytes
    hash: str
    prev_hash: str


@dataclass(frozen=True, slots=True)
class SealedBatch:
    """The log's part of a batch, ready to be stored."""

    batch_no: int
    first_seq: int
    last_seq: int
    head: str
    seal_text: str
    signature: str
    key_id: str
    algorithm: str
    events: list[Event]
    new_key: SealKey | None = None


class BatchTx:
    """One batch in one transaction, under the log lock. Made by ``LogWriter.batch``."""

    def __init__(self, connection: AsyncConnection[DictRow], pipeline: Pipeline, origin: str) -> None:
        self._c = connection
        self._pipeline = pipeline
        self._origin = origin
        self.committing = False

    async def open(self, wants: Wants) -> tuple[Head, Known] | None:
        """Begin, take the log lock, and read in the same round trip all that the batch decides on. None: another process has the
        lock; what was read is worth nothing then."""
        calls: list[Call] = [(_STATEMENTS["begin"], {}), (_STATEMENTS["try_lock_log"], {})]
        first, *answers = (await self._pipeline.run([*calls, *questions(wants, self._origin)]))[1:]
        return answered(wants, answers, self._origin) if first[0]["locked"] else None

    async def wait_for_lock(self) -> None:
        """Wait in the queue for the log lock, which is first come, first served."""
        await self._pipeline.run([(_STATEMENTS["lock_log"], {})])

    async def read(self, wants: Wants) -> tuple[Head, Known]:
        """All that the batch decides on, under the lock."""
        return answered(wants, await self._pipeline.run(questions(wants, self._origin)), self._origin)

    async def look(self, call: Call) -> list[DictRow]:
        """Run one more read under the lock."""
        (rows,) = await self._pipeline.run([call])
        return rows

    async def write(self, ops: Sequence[RowOp], head: Head, now: Any, *, heavy: bool = False) -> None:
        """Send every row of the batch in one round trip; ``heavy``: they are encoded in a thread."""
        await self._pipeline.run(await _encoded(ops, head, now, heavy))

    async def commit(
        self, head: Head, batch: SealedBatch, now: Any, ops: Sequence[RowOp] = (), *, heavy: bool = False
    ) -> None:
        """Store entries and seal, then COMMIT; with ``ops``, what ``write`` does goes along in the same round trip.

        ``committing`` tells a lost connection here from one before.
        """
        calls = await _encoded(ops, head, now, heavy)
        events = dict(zip(Event._fields, zip(*batch.events, strict=True), strict=True))
        about = {"log": head.log, "batch_no": batch.batch_no, "now": now, "signature": batch.signature}
        calls.append((_STATEMENTS["insert_events"], events | about))
        seal = {
            "first_seq": batch.first_seq,
            "last_seq": batch.last_seq,
            "head": batch.head,
            "seal_text": batch.seal_text,
            "key_id": batch.key_id,
            "algorithm": batch.algorithm,
            "system_identifier": head.system_identifier,
            "timeline": head.timeline,
        }
        calls.append((_STATEMENTS["insert_seal"], seal | about))
        if (key := batch.new_key) is not None:
            activated = {"from_seq": batch.last_seq + 1, "key_id": key.key_id, "algorithm": key.algorithm}
            calls.append((_STATEMENTS["insert_key"], activated | about | {"public_key": key.public_key}))
        calls.append((_STATEMENTS["commit"], {}))
        self.committing = True
        await self._pipeline.run(calls)

    async def rollback(self) -> None:
        """Undo the batch. A connection on which a statement failed is given up, as in ``Postgres``."""
        if self._c.closed:
            return
        if self._c.info.transaction_status == TransactionStatus.INTRANS:
            await self._c.execute(_COMMIT["rollback"])
        else:
            await self._c.close()


class LogWriter:
    """The committer's own connection: made when first needed, made again after it was lost.

    ``guard``: of the log that it writes, by name. What else the database holds is none of its business.
    """

    def __init__(self, dsn: str, signer_timeout: float, guard: LogGuard) -> None:
        self.guard = guard
        self._dsn = dsn
        # A host that dies with the log lock held must not hold it longer than the signer may take.
        self._idle = f"{int(signer_timeout * 1000) + 1000}ms"
        self._connection: AsyncConnection[DictRow] | None = None

    async def batch(self) -> BatchTx:
        with translate_errors():
            if self._connection is None or self._connection.closed:
                self._connection = await connect(self._dsn)
                # Statements are prepared by the pipeline. Where psycopg prepares any, it has all forgotten after a ROLLBACK.
                self._connection.prepare_threshold = None
                await self._connection.execute(_COMMIT["session_limits"], {"idle": self._idle})
        return BatchTx(self._connection, pipeline_of(self._connection), self.guard.origin)

    async def is_committed(self, log: int, batch_no: int, seal_text: str) -> bool:
        """Whether a batch whose COMMIT went unanswered is in the log. The lock proves that its transaction is over."""
        await self.drop()
        tx = await self.batch()
        with translate_errors():
            try:
                async with asyncio.timeout(TIMEOUT):
                    await tx._c.execute(_COMMIT["begin"])
                    await tx._c.execute(_COMMIT["lock_log"])
                    cursor = await tx._c.execute(_COMMIT["find_seal"], {"log": log, "batch_no": batch_no})
                    row = await cursor.fetchone()
                return row is not None and row["seal_text"] == seal_text
            finally:
                await tx.rollback()

    async def learn_keys(self) -> None:
        """Have the guard prove which keys have sealed the log. Raises LogTampered."""
        await self.batch()
        assert self._connection is not None  # noqa: S101 - batch made it
        facts = {"origin": self.guard.origin, "limit": MAX_KEYS + 1}
        async with asyncio.timeout(TIMEOUT), self._connection.transaction(force_rollback=True):
            await self._connection.execute("SELECT set_config('memory.all_tenants', 'on', true)")
            first = await (await self._connection.execute(_KEYS["first_key"], facts)).fetchone()
            rows = await (await self._connection.execute(_KEYS["key_history"], facts)).fetchall()
        self.guard.learn(None if first is None else first["key_id"], rows)

    async def drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await self._connection.close()
            self._connection = None


async def _encoded(ops: Sequence[RowOp], head: Head, now: Any, heavy: bool) -> list[Call]:
    return await aside.run(aside.HEAVY + 1 if heavy else 0, batch_rows.calls, ops, head.log, now)
