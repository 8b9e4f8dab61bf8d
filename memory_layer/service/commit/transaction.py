"""One batch in one transaction: decided under the log lock, signed, sealed, committed, and looked up in the log when the answer to COMMIT is lost.

A batch that cannot be signed is rolled back whole: no signature, no write. ``batch.py`` decides and chains without I/O,
``queue.py`` queues. The reasons and the measurements stand in ``docs/decisions/0003-write-path.md``.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

from memory_layer import aside
from memory_layer.aside import HEAVY
from memory_layer.audit import seal as audit_seal
from memory_layer.audit.log_end import End
from memory_layer.audit.trust_root import trusted_key
from memory_layer.errors import DatabaseUnavailable, MemoryLayerError, SignerUnavailable
from memory_layer.model import Principal, format_time
from memory_layer.service.commit.action import Touched
from memory_layer.service.commit.batch import Batch, Item, build, seal_text, time_of
from memory_layer.service.evidence import given_by
from memory_layer.service.rollback import RollbackGuard
from memory_layer.service.sealed import SealedBatches
from memory_layer.service.verification import SQL as EVIDENCE
from memory_layer.service.verification import (
    LastEntry,
    Problem,
    judge_artifact,
    judge_node,
    last_entry,
    misplaced,
    node_named,
    report,
    sealed_by,
)
from memory_layer.service.write_probe import WriteHealth
from memory_layer.stores.batch_reads import Head, Known, Wants
from memory_layer.stores.key_ring import KeyRing
from memory_layer.stores.log_guard import LogGuard, UnprovenKeys
from memory_layer.stores.log_writer import BatchTx, LogWriter, SealedBatch
from memory_layer.stores.postgres import classify, is_retryable
from memory_layer.stores.postgres_faults import is_lost
from memory_layer.stores.protocols import Signer
from memory_layer.telemetry import metrics
from memory_layer.telemetry.logs import get_logger

SIGNER_TIMEOUT = 2.0  # seconds
BREAKER_FAILURES = 3
BREAKER_PAUSE = 5.0  # seconds
RESOLVE_TIMEOUT = 30.0  # seconds
MAX_INTRODUCED = 10_000  # services whose ids a process remembers
MAX_BARRED = 16  # parts of one bulk request that Postgres cannot store, before all of it is refused

Fill = Callable[[list[Item]], None]
Committed = Callable[[Sequence[Any]], None]

P = ParamSpec("P")

log = get_logger("memory_layer.commit")


class _Unknown(DatabaseUnavailable):
    """Whether the batch stands could not be found out. It must not be run again: it may be there."""

    retryable = False


class _OtherKey(SignerUnavailable):
    """The log is sealed by a key that this process does not have open."""


class Transactor:
    """Commits batches, one at a time. ``deliver`` is handed items whose outcome or refusal is final, ``committed`` the records that were
    written."""

    def __init__(
        self,
        writer: LogWriter,
        keys: KeyRing,
        sealed: SealedBatches,
        deliver: Callable[[list[Item]], None],
        committed: Committed | None = None,
        rollback_guard: RollbackGuard | None = None,
    ) -> None:
        self._rollback_guard = rollback_guard
        self._writer = writer
        self._keys = keys
        self._sealed = sealed
        self._deliver = deliver
        self._after = committed
        self.health = WriteHealth()
        # Services that this process has seen get their ids, by tenant and name. A caller whose token was checked before is a draft for
        # some seconds more, and drafts of one service go into batches one by one.
        self.introduced: dict[tuple[str, str], uuid.UUID] = {}
        self._failures = 0
        self._closed_until = 0.0

    @property
    def guard(self) -> LogGuard:
        return self._writer.guard

    @property
    def signer_usable(self) -> bool:
        """False while the breaker is open."""
        return time.monotonic() >= self._closed_until

    def require_signer(self) -> None:
        """Raise SignerUnavailable while the breaker is open."""
        if not self.signer_usable:
            raise SignerUnavailable("The audit signer has failed repeatedly; nothing was written.", retry_after=5)

    async def close(self) -> None:
        await self._writer.drop()

    async def commit(
        self,
        batch: list[Item],
        fill: Fill | None = None,
        *,
        retried: bool = False,
        reloaded: bool = False,
        learned: int = 0,
    ) -> None:
        """Commit a batch and answer everyone in it; never raises. ``fill`` adds to it what came while it waited for the lock."""
        started = time.perf_counter()
        try:
            written = await self._transact(batch, fill)
        except _OtherKey as error:
            if reloaded:
                self._closed_until = time.monotonic() + BREAKER_PAUSE
                self._fail(batch, error)
            elif await self._reloaded(batch):
                await self.commit(batch, retried=retried, reloaded=True, learned=learned)
        except UnprovenKeys as error:
            await self._learn_and_commit(batch, error, retried, reloaded, learned)
        except _Unknown as error:
            self._fail(batch, error)
        except Exception as error:
            meaning = error if isinstance(error, MemoryLayerError) else classify(error)
            if is_retryable(error) and not retried:
                await self.commit(batch, retried=True, reloaded=reloaded, learned=learned)
            elif meaning is not None and (len(batch) == 1 or meaning.retryable):
                self._fail(batch, meaning)
            elif len(batch) > 1:
                # One change in here is one that cannot be written: halve until it stands alone.
                middle = len(batch) // 2
                await self.commit(batch[:middle])
                await self.commit(batch[middle:])
            elif batch[0].change.action.parts() is not None and not batch[0].barred:
                await self._commit_the_rest(batch[0])
            else:
                log.exception("a change failed")
                self._fail(batch, _unforeseen())
        else:
            if written:
                _after_commit("health", self.health.success)
                _after_commit("metrics", _observe, written, time.perf_counter() - started)
            self._answer(batch)

    async def _reloaded(self, batch: list[Item]) -> bool:
        """Open the keys again; False where that fails, and everyone has the answer."""
        try:
            await self._keys.reload()
        except Exception as error:
            log.exception("the keys that seal the log could not be opened again")
            known = error if isinstance(error, MemoryLayerError) else None
            self._fail(
                batch, known or SignerUnavailable("The audit signer's keys cannot be opened; nothing was written.")
            )
            return False
        return True

    async def _learn_and_commit(
        self, batch: list[Item], error: UnprovenKeys, retried: bool, reloaded: bool, learned: int
    ) -> None:
        """The first batch of this process, or the first after another one changed the key. ``learned``: keys proved for it before."""
        try:
            await self._writer.learn_keys()
        except Exception as failed:  # noqa: BLE001 - the same outermost door as ``commit``
            if is_retryable(failed) and not retried:
                await self.commit(batch, retried=True, reloaded=reloaded, learned=learned)
                return
            self._fail(batch, (failed if isinstance(failed, MemoryLayerError) else classify(failed)) or _unforeseen())
            return
        if self.guard.keys == learned:
            self._fail(batch, error)
        else:
            await self.commit(batch, retried=retried, reloaded=reloaded, learned=self.guard.keys)

    async def _commit_the_rest(self, item: Item) -> None:
        """Postgres cannot store some part of a bulk request: find out which, and commit the request without it."""
        parts = item.change.action.parts() or ()
        places = [place for place, part in enumerate(parts) if not isinstance(part, MemoryLayerError)]
        try:
            found = await self._offenders(item, places)
        except Exception as error:  # noqa: BLE001 - the same outermost door as ``commit``
            self._fail([item], (error if isinstance(error, MemoryLayerError) else classify(error)) or _unforeseen())
            return
        if not found:  # it was not for what a part holds
            self._fail([item], _unforeseen())
            return
        item.barred = {
            place: MemoryLayerError("This node cannot be stored; nothing of it was written.") for place in found
        }
        await self.commit([item], retried=True)

    async def _offenders(self, item: Item, places: list[int]) -> list[int]:
        """Which of these parts Postgres refuses; tried in transactions that are rolled back."""
        others = set(range(len(item.change.action.parts() or ()))) - set(places)
        trial = Item(item.change, item.done, [], barred=dict.fromkeys(others, _unforeseen()))
        try:
            await self._transact([trial], keep=False)
        except Exception as error:
            meaning = error if isinstance(error, MemoryLayerError) else classify(error)
            if meaning is not None:
                raise
            if len(places) == 1:
                return places
            middle = len(places) // 2
            found = await self._offenders(item, places[:middle])
            if len(found) < MAX_BARRED:
                found += await self._offenders(item, places[middle:])
            if len(found) >= MAX_BARRED:
                raise _unforeseen() from error
            return found
        return []

    async def _transact(self, batch: list[Item], fill: Fill | None = None, *, keep: bool = True) -> int:
        """Run a batch in one transaction; how many entries it made. Without ``keep`` it is tried and rolled back."""
        # Asked again here: those that were waiting when the signer failed must not take the log lock one batch after another.
        self.require_signer()
        tx = await self._writer.batch()
        committed = False
        try:
            found = await tx.open(_wants(batch))
            if found is None:
                await tx.wait_for_lock()
                if fill is not None:
                    fill(batch)
                found = await tx.read(_wants(batch))
            head, known = found
            if self._rollback_guard is not None:
                self._rollback_guard.require_intact()
                self._rollback_guard.require_server(head)
            self._writer.guard.check(head.row, self._writer.guard.last)
            if _known_by_other_ids(batch, known):
                head, known = await tx.read(_wants(batch))
            now = time_of(head)
            metrics.writes_frozen.set(head.frozen is not None)
            tampered = await self._tampered(tx, batch, known)
            # What brought much, or changes what is much, is decided in a thread: reads go on meanwhile, health checks among them.
            size = max(sum(item.change.size for item in batch), HEAVY + 1 if _is_heavy(known) else 0)
            built = await aside.run(size, build, batch, head, known, now, tampered)
            built.heavy = size > HEAVY
            if built.events and keep:
                signer = self._keys.find(head.key_id)
                if signer is None:
                    raise _OtherKey(
                        f"The log is sealed by the key {head.key_id[:16]}... by now, and this server has not got it; nothing was "
                        "written. Give it that key (AUDIT_KMS_KEY_ID, or the data folder's keys), or finish the rotation with "
                        "`memoryctl rotate signing-key`."
                    )
                committed = await self._seal(tx, head, built, now, signer)
                if committed and self._after is not None and built.rows:
                    _after_commit("what follows a commit", self._after, [record for _, record in built.rows])
            elif built.events:
                await tx.write(built.rows, head, now, heavy=built.heavy)
        finally:
            if not committed:
                await self._roll_back(tx)
        return len(built.events)

    async def _tampered(self, tx: BatchTx, batch: list[Item], known: Known) -> dict[Touched, Problem]:
        """Which rows that this batch is to change are not what their last sealed entry says."""
        if not known.node_entries and not known.artifact_entries and not known.nodes and not known.artifacts:
            return {}
        of_nodes = {key: last_entry(row) for key, row in known.node_entries.items()}
        of_artifacts = {key: last_entry(row) for key, row in known.artifact_entries.items()}
        await sealed_by(self._sealed, [*of_nodes.values(), *of_artifacts.values()], tx.look)
        touches = {touched for item in batch for touched in item.touches}
        holds = await _holds(tx, touches, known, of_artifacts)
        problems = []
        for tenant, kind, id_ in touches:
            problem = None
            if kind == "node" and isinstance(id_, uuid.UUID):
                key = (tenant, id_)
                vector = given_by(known.vectors.get(key, ()))
                node = known.nodes.get(key)
                size = (
                    HEAVY + 1
                    if node is not None and (len(node.content or "") > HEAVY or aside.is_heavy(node.metadata))
                    else 0
                )
                problem = await aside.run(size, judge_node, tenant, id_, node, vector, of_nodes.get(key), self._sealed)
            elif kind == "artifact" and isinstance(id_, uuid.UUID):
                key = (tenant, id_)
                artifact, last = known.artifacts.get(key), of_artifacts.get(key)
                problem = judge_artifact(tenant, id_, artifact, last, self._sealed)
                if problem is None and artifact is not None and last is not None:
                    problem = misplaced(artifact, node_named(last), holds, last)
            if problem is not None:
                problems.append(problem)
        # One that an operator's act puts right, accepts or carries over is no news.
        known_of = {item.change.action.resolves(item.change.caller.tenant) for item in batch}
        report([one for one in problems if (one.tenant, one.kind, one.id) not in known_of], "write")
        return {(problem.tenant, problem.kind, problem.id): problem for problem in problems}

    async def _roll_back(self, tx: BatchTx) -> None:
        try:
            await tx.rollback()
        except Exception:  # noqa: BLE001 - a connection whose transaction may still be open serves no other batch
            await self._writer.drop()

    def _fail(self, batch: list[Item], error: MemoryLayerError) -> None:
        self.health.failure(error)
        for item in batch:
            item.outcome, item.refusal = None, error
        self._answer(batch)

    def _answer(self, batch: list[Item]) -> None:
        """Give everyone their answer; where the way to do so fails, one by one at once."""
        for item in batch:
            item.final = True
        try:
            self._deliver(batch)
        except Exception:
            log.exception("answers could not be delivered a few at a time; each is given at once")
            for item in batch:
                _after_commit("an answer", item.deliver)

    async def abandon(self, batch: list[Item]) -> None:
        """After an unexpected error: drop the connection, and tell each writer without an answer that the outcome is not known."""
        await self._writer.drop()
        self._fail(
            [item for item in batch if not item.final],
            _Unknown(
                "The write failed in an unforeseen way; whether it stands is not known. Read before writing again."
            ),
        )

    async def _seal(self, tx: BatchTx, head: Head, built: Batch, now: dt.datetime, signer: Signer) -> bool:
        text = seal_text(built, head, now, signer.key_id, signer.algorithm)
        if signer.local:
            # Then rows, seal and COMMIT are one round trip, and the event loop does nothing else while the log lock waits.
            signature = await self._sign(signer, text)
        else:
            signing = asyncio.create_task(self._sign(signer, text))
            try:
                await tx.write(built.rows, head, now, heavy=built.heavy)
            except BaseException:
                signing.cancel()
                await asyncio.gather(signing, return_exceptions=True)  # its own failure no longer matters
                raise
            signature = await signing
        sealed = SealedBatch(
            batch_no=head.batch_no + 1,
            first_seq=head.last_seq + 1,
            last_seq=head.last_seq + len(built.events),
            head=built.last_hash,
            seal_text=text.decode("ascii"),
            signature=base64.b64encode(signature).decode("ascii"),
            key_id=signer.key_id,
            algorithm=signer.algorithm,
            events=built.events,
            new_key=built.new_key,
        )
        try:
            await tx.commit(head, sealed, now, built.rows if signer.local else (), heavy=built.heavy)
        except Exception as error:
            # Only Postgres's own refusal says that nothing was committed. Whatever else comes up from here on, a lost connection or a
            # fault of this program, may have come up after COMMIT: then the log says what happened.
            if not (tx.committing and not _refused(error) and await self._resolve_unknown(head, sealed)):
                raise
        _after_commit("the note of what is sealed", self._note_sealed, sealed, built, now)
        return True

    def _note_sealed(self, sealed: SealedBatch, built: Batch, now: dt.datetime) -> None:
        """Remember what this process sealed itself."""
        if len(self.introduced) > MAX_INTRODUCED:
            self.introduced.clear()
        self.introduced |= {(who.tenant, who.service): who.id for _, who in built.rows if isinstance(who, Principal)}
        self._sealed.add(
            sealed.batch_no, sealed.first_seq, bytes.fromhex("".join(event.hash for event in built.events))
        )
        new_key = None if (key := built.new_key) is None else trusted_key(key.algorithm, key.public_key)
        self._writer.guard.sealed(
            End(
                sealed.batch_no,
                sealed.first_seq,
                sealed.last_seq,
                sealed.head,
                sealed.seal_text,
                sealed.signature,
                sealed.key_id,
                sealed.algorithm,
                format_time(now),
            ),
            new_key,
        )

    async def _resolve_unknown(self, head: Head, sealed: SealedBatch) -> bool:
        """COMMIT was sent and its answer lost: nobody is answered before the log says what happened."""
        deadline = time.monotonic() + RESOLVE_TIMEOUT
        while True:
            try:
                return await self._writer.is_committed(head.log, sealed.batch_no, sealed.seal_text)
            except Exception as error:
                if time.monotonic() > deadline:
                    raise _Unknown(
                        "Postgres went away while it was committing and has not come back: whether this write stands is not "
                        "known. Read before writing again, or repeat it under the same Idempotency-Key."
                    ) from error
                await asyncio.sleep(0.2)

    async def _sign(self, signer: Signer, text: bytes) -> bytes:
        try:
            async with asyncio.timeout(SIGNER_TIMEOUT):
                signature = await signer.sign(text)
            # A signer that answers with a signature over something else must not seal anything.
            if not audit_seal.verify_signature(signer.algorithm, signer.public_key_der, text, signature):
                raise SignerUnavailable("The audit signer gave a signature that does not verify; nothing was written.")
        except Exception as error:
            self._failures += 1
            if self._failures >= BREAKER_FAILURES:
                self._closed_until = time.monotonic() + BREAKER_PAUSE
            metrics.signer_failures.inc()
            if isinstance(error, SignerUnavailable):
                raise
            # Whatever a signer raises, an OSError of its own among them, must not pass for a fault of the database.
            late = isinstance(error, TimeoutError)
            reason = f"did not answer within {SIGNER_TIMEOUT} s" if late else f"failed ({type(error).__name__})"
            raise SignerUnavailable(f"The audit signer {reason}; nothing was written.") from error
        self._failures = 0
        return signature


def _known_by_other_ids(batch: list[Item], known: Known) -> bool:
    """Put into each draft's place the id that its service has by now; whether any is another, which idempotency keys go by."""
    others = False
    for item in batch:
        change = item.change.resolved(known)
        others = others or change.caller.actor != item.change.caller.actor
        item.change = change
    return others


def _wants(batch: list[Item]) -> Wants:
    wants = Wants()
    for item in batch:
        item.change.reads(wants)
    return wants


def _is_heavy(known: Known) -> bool:
    return any(aside.is_heavy(node.metadata) for node in known.nodes.values())


def _refused(error: Exception) -> bool:
    """Whether Postgres answered that it did not commit; an answer that ends the session is none."""
    return getattr(error, "sqlstate", None) is not None and not is_lost(error)


def _observe(written: int, seconds: float) -> None:
    metrics.commit_batch_size.observe(written)
    metrics.commit_seconds.observe(seconds)


def _after_commit(what: str, step: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Do what follows a commit. Its failure is logged and changes nothing: the batch stands, and running it again would write it twice."""
    try:
        step(*args, **kwargs)
    except Exception:
        log.exception("a step after a commit failed; what was committed stands", step=what)


def _unforeseen() -> MemoryLayerError:
    return MemoryLayerError("The write failed and nothing was changed.")


async def _holds(
    tx: BatchTx, touches: set[Touched], known: Known, last: Mapping[tuple[str, uuid.UUID], LastEntry]
) -> dict[tuple[str, uuid.UUID | None], bool]:
    """Of the nodes that these artifacts belong to by the log, those that are there, and whether each is held."""
    named = set()
    for tenant, kind, id_ in touches:
        if (
            kind == "artifact"
            and isinstance(id_, uuid.UUID)
            and (tenant, id_) in known.artifacts
            and (tenant, id_) in last
        ):
            node = node_named(last[tenant, id_])
            if node is not None:
                named.add((tenant, node))
    if not named:
        return {}
    tenants, ids = zip(*named, strict=True)
    rows = await tx.look((EVIDENCE["holds_of_files"], {"tenants": tenants, "ids": ids}))
    return {(row["tenant"], row["id"]): row["legal_hold"] for row in rows}
