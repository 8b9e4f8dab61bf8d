"""The write path: batches, refusals, poison, signers that fail, connections that die at every step, two processes at once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from memory_layer.errors import (
    Conflict,
    DatabaseUnavailable,
    IdempotencyMismatch,
    LegalHold,
    MemoryLayerError,
    NotFound,
    Overloaded,
    PolicyRefused,
    PreconditionFailed,
    SignerUnavailable,
    Unwritable,
    ValidationError,
)
from memory_layer.model import Caller
from memory_layer.service.actions.nodes import DeleteNode, SetHold
from memory_layer.service.commit import Change, Committer, Idempotency, Outcome, queue, request_hash, transaction
from memory_layer.service.installation import Installation
from memory_layer.stores import pipeline
from memory_layer.stores.key_ring import KeyRing
from memory_layer.stores.log_guard import LogGuard
from memory_layer.stores.log_writer import LogWriter
from memory_layer.stores.protocols import Signer
from tests.support.postgres_proxy import PostgresProxy, Trap, at_statement
from tests.support.service import (
    caller,
    create,
    delete,
    hold,
    new_node,
    patch_node,
    rows,
    running_memory,
    verify,
)

Database = Callable[[str], str]
LOG_LOCK = "SELECT pg_advisory_lock(5062476, 0)"
COMMITTER = "application_name = 'memory-layer committer' AND datname = current_database()"


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened


@pytest.fixture
def check(database: Database, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Asserts that log and rows are whole; runs once more at the end of the test."""

    def clean() -> None:
        # The constraint that poison meets, and the function that cuts a COMMIT off, are none of a migration.
        rows(database("postgres"), "ALTER TABLE memory_nodes DROP CONSTRAINT IF EXISTS poison")
        rows(database("postgres"), "DROP FUNCTION IF EXISTS at_commit CASCADE")
        verdict = verify(database("postgres"), tmp_path)
        assert verdict.findings == ()
        assert verdict.exit_code == 10

    yield clean
    clean()


@pytest.fixture
def root(database: Database) -> Callable[..., list[tuple[Any, ...]]]:
    return lambda query, *params: rows(database("postgres"), query, params)


async def settle(*submitted: Awaitable[Outcome]) -> list[Outcome | BaseException]:
    return await asyncio.wait_for(asyncio.gather(*submitted, return_exceptions=True), 60)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "what the test waits for did not come about"
        await asyncio.sleep(0.01)


def versions(outcomes: list[Outcome | BaseException]) -> list[int]:
    return [o.answer["version"] if isinstance(o, Outcome) else -1 for o in outcomes]


def counts(root: Callable[..., list[tuple[Any, ...]]]) -> tuple[int, int, int]:
    """(nodes, entries, seals)"""
    return root("SELECT (SELECT count(*) FROM memory_nodes), (SELECT count(*) FROM audit_events),"
                " (SELECT count(*) FROM audit_seals)")[0]  # fmt: skip


# --- batches


async def test_many_writers_share_few_batches(memory: Installation, root: Any, check: Any) -> None:
    outcomes = await settle(
        *(memory.committer.submit(Change(caller(), new_node(content=f"text {n}"))) for n in range(200))
    )
    assert all(isinstance(o, Outcome) for o in outcomes), outcomes
    nodes, entries, seals = counts(root)
    assert (nodes, entries) == (200, 200)
    assert seals <= 3
    receipts = {(o.receipt.seq, o.receipt.hash, o.receipt.id) for o in outcomes if isinstance(o, Outcome)}
    assert receipts == set(root("SELECT seq, hash, id FROM audit_events"))
    assert {r[0] for r in receipts} == set(range(200))
    assert root("SELECT count(*) FROM memory_vectors WHERE status = 'pending'") == [(200,)]


async def test_no_batch_grows_beyond_its_bound(memory: Installation, root: Any, check: Any) -> None:
    await settle(*(memory.committer.submit(Change(caller(), new_node())) for _ in range(queue.BATCH + 50)))
    assert root("SELECT max(last_seq - first_seq + 1) FROM audit_seals")[0][0] <= queue.BATCH


async def test_changes_of_one_node_keep_their_order(memory: Installation, root: Any, check: Any) -> None:
    node = await create(memory)
    others = [memory.committer.submit(Change(caller(), new_node())) for _ in range(10)]
    patches = [memory.committer.submit(Change(caller(), patch_node(node, metadata={"n": n}))) for n in range(20)]
    outcomes = await settle(*patches, *others)
    assert versions(outcomes[:20]) == list(range(2, 22))
    stored = root("SELECT entry FROM audit_events WHERE memory_node_id = %s ORDER BY seq", node)
    assert [json.loads(bytes(entry))["version"] for (entry,) in stored] == list(range(1, 22))
    assert root("SELECT version, metadata FROM memory_nodes WHERE id = %s", node) == [(21, {"n": 19})]


async def test_a_refused_change_leaves_nothing_and_holds_up_no_one(memory: Installation, root: Any, check: Any) -> None:
    held, taken = await create(memory), await create(memory, embedding_id="taken")
    await hold(memory, held)
    await create(memory, tenant="bob", embedding_id="bobs")
    before = counts(root)
    good = [memory.committer.submit(Change(caller(), new_node(embedding_id=f"e{n}"))) for n in range(5)]
    bad: list[tuple[type[MemoryLayerError], Change]] = [
        (LegalHold, Change(caller(), DeleteNode(held, None))),
        (NotFound, Change(caller(), DeleteNode(uuid.uuid4(), None))),
        (NotFound, Change(caller("bob"), DeleteNode(taken, None))),
        (Conflict, Change(caller(), new_node(embedding_id="taken"))),
        (PreconditionFailed, Change(caller(), patch_node(taken, expected_version=9, content="x"))),
    ]
    outcomes = await settle(*(memory.committer.submit(change) for _, change in bad), *good)
    assert [type(o) for o in outcomes] == [kind for kind, _ in bad] + [Outcome] * 5
    after = counts(root)
    assert (after[0] - before[0], after[1] - before[1]) == (5, 5)
    assert root("SELECT content FROM memory_nodes WHERE id = %s", taken) == [("some text",)]
    # An embeddingId is unique within a tenant only, and free again once its node is deleted.
    await create(memory, embedding_id="bobs")
    await delete(memory, taken)
    await create(memory, embedding_id="taken")


async def test_a_batch_of_refusals_writes_no_seal(memory: Installation, root: Any, check: Any) -> None:
    outcomes = await settle(
        *(memory.committer.submit(Change(caller(), DeleteNode(uuid.uuid4(), None))) for _ in range(5))
    )
    assert [type(o) for o in outcomes] == [NotFound] * 5
    assert counts(root) == (0, 0, 0)


async def test_one_embedding_id_is_given_once_however_many_ask(memory: Installation, root: Any, check: Any) -> None:
    outcomes = await settle(
        *(memory.committer.submit(Change(caller(), new_node(embedding_id="one"))) for _ in range(8))
    )
    assert sorted(type(o).__name__ for o in outcomes) == ["Conflict"] * 7 + ["Outcome"]
    assert counts(root)[:2] == (1, 1)


# --- poison


POISON: list[tuple[str, Callable[[], Change], type[MemoryLayerError]]] = [
    ("a row that a constraint refuses", lambda: Change(caller(), new_node(owner="poison")), MemoryLayerError),
    ("text that Postgres cannot hold", lambda: Change(caller(), new_node(content="a\0b")), MemoryLayerError),
    ("text that is no Unicode", lambda: Change(caller(), new_node(owner="\ud800")), ValidationError),
    ("an entry that cannot be encoded", lambda: Change(caller(request_id='a"b'), new_node()), ValidationError),
    ("a value that no JSON has", lambda: Change(caller(), new_node(metadata={"x": {1, 2}})), ValidationError),
    ("an id that exists", lambda: Change(caller(), new_node(id=uuid.UUID(int=9))), Conflict),
]


@pytest.mark.parametrize(("poison", "kind"), [p[1:] for p in POISON], ids=[p[0] for p in POISON])
async def test_one_poisoned_change_fails_alone(
    memory: Installation, root: Any, check: Any, poison: Callable[[], Change], kind: type[MemoryLayerError]
) -> None:
    root("ALTER TABLE memory_nodes ADD CONSTRAINT poison CHECK (owner <> 'poison')")
    await create(memory, id=uuid.UUID(int=9))
    changes = [Change(caller(), new_node()) for _ in range(20)]
    changes.insert(7, poison())
    outcomes = await settle(*(memory.committer.submit(change) for change in changes))
    assert type(outcomes[7]) is kind
    assert [type(o) for n, o in enumerate(outcomes) if n != 7] == [Outcome] * 20
    assert counts(root)[:2] == (21, 21)


async def test_several_poisoned_changes_fail_alone(memory: Installation, root: Any, check: Any) -> None:
    root("ALTER TABLE memory_nodes ADD CONSTRAINT poison CHECK (owner <> 'poison')")
    bad = {0, 3, 4, 19}
    outcomes = await settle(
        *(memory.committer.submit(Change(caller(), new_node(owner="poison" if n in bad else "ann"))) for n in range(20))
    )
    assert {n for n, o in enumerate(outcomes) if isinstance(o, MemoryLayerError)} == bad
    assert counts(root)[:2] == (16, 16)


# --- idempotency


def keyed(key: str, body: bytes = b"body", who: Caller | None = None) -> Change:
    return Change(who or caller(), new_node(), Idempotency(key, request_hash("POST", body)))


async def test_one_key_is_one_write_however_many_send_it(memory: Installation, root: Any, check: Any) -> None:
    outcomes = await settle(*(memory.committer.submit(keyed("k")) for _ in range(10)))
    assert all(isinstance(o, Outcome) for o in outcomes)
    answers = [o for o in outcomes if isinstance(o, Outcome)]
    assert len({json.dumps(o.answer, sort_keys=True) for o in answers}) == 1
    assert sorted(o.replayed for o in answers) == [False] + [True] * 9
    assert len({o.receipt for o in answers}) == 1
    assert counts(root)[:2] == (1, 1)


async def test_a_key_is_bound_to_its_request_its_tenant_and_its_actor(
    memory: Installation, root: Any, check: Any
) -> None:
    await memory.committer.submit(keyed("k"))
    with pytest.raises(IdempotencyMismatch):
        await memory.committer.submit(keyed("k", b"another"))
    for who in (caller("bob"), caller(actor=uuid.uuid4())):
        assert not (await memory.committer.submit(keyed("k", who=who))).replayed
    assert counts(root)[:2] == (3, 3)


async def test_a_refused_request_does_not_use_up_its_key(memory: Installation, check: Any) -> None:
    holder = await create(memory, embedding_id="taken")
    action = new_node(embedding_id="taken")
    again = Change(caller(), action, Idempotency("k", request_hash("POST")))
    with pytest.raises(Conflict):
        await memory.committer.submit(again)
    await delete(memory, holder)
    assert not (await memory.committer.submit(again)).replayed


# --- signers


class FaultySigner:
    """Signs with a real key, after whatever the test puts into ``fault``."""

    local = False

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.algorithm, self.key_id, self.public_key_der = signer.algorithm, signer.key_id, signer.public_key_der
        self.fault: Callable[[], Awaitable[bytes | None]] | None = None
        self.asked = 0

    async def sign(self, message: bytes) -> bytes:
        self.asked += 1
        wrong = None if self.fault is None else await self.fault()
        return await self._signer.sign(message) if wrong is None else wrong

    async def close(self) -> None:
        await self._signer.close()


@contextlib.asynccontextmanager
async def committing(memory: Installation, dsn: str | None = None) -> AsyncIterator[tuple[Committer, FaultySigner]]:
    """Another process's committer on the same log, with a signer that can be made to fail."""
    signer = FaultySigner(memory.keys.newest)

    async def reopen() -> list[Signer]:
        return [signer]

    committer = Committer(
        LogWriter(dsn or memory.postgres.dsn, 5.0, LogGuard(memory.trust_root)), KeyRing([signer], reopen)
    )
    try:
        yield committer, signer
    finally:
        signer.fault = None
        await asyncio.wait_for(committer.close(), 60)


async def refuses() -> bytes:
    raise SignerUnavailable("no key today")


async def breaks() -> bytes:
    raise ConnectionResetError("the signer's connection, not the database's")


async def hangs() -> None:
    await asyncio.Event().wait()


async def signs_wrong() -> bytes:
    return bytes(64)


@pytest.mark.parametrize("fault", [refuses, breaks, hangs, signs_wrong])
async def test_no_signature_no_write(
    memory: Installation, root: Any, check: Any, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    monkeypatch.setattr(transaction, "SIGNER_TIMEOUT", 0.2)
    async with committing(memory) as (committer, signer):
        signer.fault = fault
        outcomes = await settle(*(committer.submit(keyed(f"k{n}")) for n in range(10)))
        assert [type(o) for o in outcomes] == [SignerUnavailable] * 10
        assert counts(root) == (0, 0, 0)
        assert root("SELECT count(*) FROM idempotency_keys") == [(0,)]
        signer.fault = None
        outcomes = await settle(*(committer.submit(keyed(f"k{n}")) for n in range(10)))
        assert [type(o) for o in outcomes] == [Outcome] * 10
        assert counts(root)[:2] == (10, 10)


async def test_the_breaker_opens_before_the_lock_and_closes_again(
    memory: Installation, root: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "BREAKER_PAUSE", 0.3)
    async with committing(memory) as (committer, signer):
        signer.fault = refuses
        for _ in range(transaction.BREAKER_FAILURES):
            assert committer.signer_usable
            with pytest.raises(SignerUnavailable, match="no key today"):
                await committer.submit(Change(caller(), new_node()))
        assert not committer.signer_usable
        asked = signer.asked
        with psycopg.connect(memory.postgres.dsn, autocommit=True) as other:
            other.execute(LOG_LOCK)  # an open breaker answers although nobody could take the lock
            with pytest.raises(SignerUnavailable, match="repeatedly"):
                await committer.submit(Change(caller(), new_node()))
        assert signer.asked == asked
        await until(lambda: committer.signer_usable)
        with pytest.raises(SignerUnavailable, match="no key today"):  # half open: one failure shuts it again
            await committer.submit(Change(caller(), new_node()))
        assert not committer.signer_usable
        await until(lambda: committer.signer_usable)
        signer.fault = None
        await committer.submit(Change(caller(), new_node()))
        assert committer.signer_usable
    assert counts(root) == (1, 1, 1)


async def test_those_who_wait_when_the_breaker_opens_are_refused_at_once(
    memory: Installation, root: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "BATCH", 2)
    async with committing(memory) as (committer, signer):
        signer.fault = refuses
        outcomes = await settle(*(committer.submit(Change(caller(), new_node())) for _ in range(40)))
        assert [type(o) for o in outcomes] == [SignerUnavailable] * 40
        assert signer.asked == transaction.BREAKER_FAILURES
    assert counts(root) == (0, 0, 0)


# --- connections that die


def kill(root: Any) -> int:
    return len(root(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {COMMITTER}"))


def waits(root: Any, pattern: str) -> Callable[[], bool]:
    """Whether the committer waits for a lock in a statement like this."""
    query = f"SELECT 1 FROM pg_stat_activity WHERE {COMMITTER} AND wait_event_type = 'Lock' AND query LIKE %s"
    return lambda: bool(root(query, pattern))


async def all_or_nothing(committer: Committer, root: Any, strike: Callable[[], Awaitable[None]]) -> bool:
    """Send ten writes, strike once while they are under way; whether they stand. They must all stand or none, and once."""
    before = counts(root)
    sent = [committer.submit(Change(caller(), new_node())) for _ in range(10)]
    outcomes, _ = await asyncio.gather(settle(*sent), strike())
    after = counts(root)
    kinds = {type(o) for o in outcomes}
    if kinds == {Outcome}:
        assert (after[0] - before[0], after[1] - before[1]) == (10, 10)
        stored = dict(root("SELECT seq, hash FROM audit_events"))
        assert all(stored[o.receipt.seq] == o.receipt.hash for o in outcomes if isinstance(o, Outcome))
    else:
        assert kinds == {DatabaseUnavailable}, outcomes
        assert all(o.retryable for o in outcomes if isinstance(o, MemoryLayerError))
        assert after == before
    # The committer recovers by itself.
    await committer.submit(Change(caller(), new_node()))
    return kinds == {Outcome}


async def test_a_connection_lost_while_idle(memory: Installation, root: Any, check: Any) -> None:
    await create(memory)
    assert kill(root) == 1

    async def nothing() -> None: ...

    await all_or_nothing(memory.committer, root, nothing)


async def test_a_connection_lost_while_waiting_for_the_log(
    memory: Installation, database: Database, root: Any, check: Any
) -> None:
    async def strike() -> None:
        await until(waits(root, "%pg_advisory_xact_lock%"))
        kill(root)
        other.close()

    other = psycopg.connect(database("postgres"), autocommit=True)
    other.execute(LOG_LOCK)
    assert await all_or_nothing(memory.committer, root, strike)


async def test_a_connection_lost_while_signing(memory: Installation, root: Any, check: Any) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        reached.set()
        await go_on.wait()

    async def strike() -> None:
        await reached.wait()
        kill(root)
        signer.fault = None
        go_on.set()

    async with committing(memory) as (committer, signer):
        signer.fault = pause
        assert await all_or_nothing(committer, root, strike)


async def test_a_connection_lost_while_writing(memory: Installation, database: Database, root: Any, check: Any) -> None:
    async def strike() -> None:
        await until(waits(root, "INSERT INTO memory_nodes%"))
        kill(root)
        other.close()

    other = psycopg.connect(database("postgres"))
    other.execute("LOCK TABLE memory_nodes IN SHARE MODE")
    assert await all_or_nothing(memory.committer, root, strike)


async def test_a_connection_lost_inside_commit(memory: Installation, database: Database, root: Any, check: Any) -> None:
    root(
        """CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7, 7); RETURN NULL; END $$;
           CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON audit_seals DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION at_commit()"""
    )

    async def strike() -> None:
        await until(waits(root, "COMMIT%"))
        kill(root)
        other.close()

    other = psycopg.connect(database("postgres"), autocommit=True)
    other.execute("SELECT pg_advisory_lock(7, 7)")
    assert await all_or_nothing(memory.committer, root, strike)


async def test_a_commit_whose_answer_is_lost_is_found_in_the_log(memory: Installation, root: Any, check: Any) -> None:
    with PostgresProxy(memory.postgres.dsn) as proxy:
        async with committing(memory, proxy.through(memory.postgres.dsn)) as (committer, _):
            for _ in range(4):  # both before and after the statements are prepared
                lost = Trap(at_statement("to client", "C", "COMMIT"))

                async def arm(trap: Trap = lost) -> None:
                    proxy.arm(trap)

                assert await all_or_nothing(committer, root, arm)
                assert lost.struck.is_set()


async def test_an_outcome_that_stays_unknown_is_not_called_nothing(
    memory: Installation, root: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "RESOLVE_TIMEOUT", 0.2)
    with PostgresProxy(memory.postgres.dsn) as proxy:
        async with committing(memory, proxy.through(memory.postgres.dsn)) as (committer, _):
            await committer.submit(Change(caller(), new_node()))
            proxy.refuse()
            proxy.arm(Trap(at_statement("to client", "C", "COMMIT")))
            with pytest.raises(DatabaseUnavailable, match="whether this write stands is not known"):
                await committer.submit(Change(caller(), new_node()))
    assert counts(root)[:2] == (2, 2)


async def test_a_batch_whose_outcome_stays_unknown_is_not_run_again(
    memory: Installation, root: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [await create(memory) for _ in range(4)]
    monkeypatch.setattr(transaction, "RESOLVE_TIMEOUT", 0.2)
    with PostgresProxy(memory.postgres.dsn) as proxy:
        async with committing(memory, proxy.through(memory.postgres.dsn)) as (committer, _):
            await committer.submit(Change(caller(), new_node()))
            proxy.refuse()
            proxy.arm(Trap(at_statement("to client", "C", "COMMIT")))
            outcomes = await settle(
                *(committer.submit(Change(caller(), SetHold(node, True, "case 7", None))) for node in nodes)
            )
    assert [type(o).__mro__[1] for o in outcomes] == [DatabaseUnavailable] * 4
    assert not any(o.retryable for o in outcomes if isinstance(o, MemoryLayerError))
    assert root("SELECT version, count(*) FROM memory_nodes WHERE legal_hold GROUP BY 1") == [(2, 4)]


async def test_a_backend_that_stands_still_does_not_stop_writers_for_good(
    memory: Installation, root: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "TIMEOUT", 0.5)
    monkeypatch.setattr(transaction, "RESOLVE_TIMEOUT", 0.2)
    await create(memory)
    ((pid,),) = root(f"SELECT pid FROM pg_stat_activity WHERE {COMMITTER}")
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.wait_for(create(memory), 60)  # over another connection
    finally:
        os.kill(pid, signal.SIGCONT)
    assert counts(root)[:2] == (2, 2)


async def test_a_committer_outlives_what_nobody_foresaw(memory: Installation, root: Any, check: Any) -> None:
    async def reopen() -> list[Signer]:
        raise PermissionError("a folder of keys that cannot be searched")

    committer = Committer(LogWriter(memory.postgres.dsn, 5.0, LogGuard(memory.trust_root)), KeyRing([], reopen))
    with pytest.raises(SignerUnavailable, match="has not got it"):
        await asyncio.wait_for(committer.submit(Change(caller(), new_node())), 60)

    async def breaks_down(*_: object, **__: object) -> None:
        raise RecursionError

    broken = Committer(LogWriter(memory.postgres.dsn, 5.0, LogGuard(memory.trust_root)), memory.keys)
    broken._transactor.commit = breaks_down  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable, match="unforeseen"):
            await asyncio.wait_for(broken.submit(Change(caller(), new_node())), 60)
    await asyncio.wait_for(asyncio.gather(committer.close(), broken.close()), 60)
    assert counts(root) == (0, 0, 0)


async def test_a_key_is_forgotten_after_a_day(memory: Installation, root: Any, check: Any) -> None:
    first = await memory.committer.submit(keyed("once"))
    again = await memory.committer.submit(keyed("once"))
    assert (again.replayed, again.receipt) == (True, first.receipt)
    root("UPDATE idempotency_keys SET created_at = created_at - interval '23 hours 59 minutes'")
    assert (await memory.committer.submit(keyed("once"))).replayed
    root("UPDATE idempotency_keys SET created_at = created_at - interval '2 minutes'")
    later = await memory.committer.submit(keyed("once"))
    assert not later.replayed
    assert (await memory.committer.submit(keyed("once"))).receipt == later.receipt
    assert counts(root)[:2] == (2, 2)


# --- two processes, cancelled callers, closing


async def test_two_processes_write_one_log_without_fork_or_gap(memory: Installation, root: Any, check: Any) -> None:
    async with committing(memory) as (second, _):
        shared = await create(memory)
        sent = []
        for n in range(300):
            committer = (memory.committer, second)[n % 2]
            sent.append(
                committer.submit(Change(caller(("ann", "bob")[n % 3 % 2]), new_node(embedding_id=f"e{n // 2}")))
            )
            if n % 10 == 0:
                sent.append(committer.submit(Change(caller(), patch_node(shared, metadata={str(n): n}))))
                sent.append(committer.submit(keyed(f"k{n // 20}")))
        outcomes = await settle(*sent)
    assert {type(o) for o in outcomes} <= {Outcome, Conflict}
    written = [o for o in outcomes if isinstance(o, Outcome) and not o.replayed]
    _nodes, entries, seals = counts(root)
    assert entries == len(written) + 1
    assert root("SELECT min(seq), max(seq), count(DISTINCT seq) FROM audit_events") == [(0, entries - 1, entries)]
    assert root("SELECT max(batch_no) FROM audit_seals") == [(seals - 1,)]
    assert root("SELECT tenant FROM memory_nodes WHERE deleted_at IS NULL AND embedding_id IS NOT NULL"
                " GROUP BY tenant, embedding_id HAVING count(*) > 1") == []  # fmt: skip
    ((version, metadata),) = root("SELECT version, metadata FROM memory_nodes WHERE id = %s", shared)
    assert (version, len(metadata)) == (31, 30)
    assert len([o for o in outcomes if isinstance(o, Outcome) and o.replayed]) == 15


async def test_a_cancelled_caller_is_dropped_before_pick_up_and_finished_after(
    memory: Installation, database: Database, root: Any, check: Any
) -> None:
    with psycopg.connect(database("postgres"), autocommit=True) as other:
        other.execute(LOG_LOCK)
        picked = [
            asyncio.ensure_future(memory.committer.submit(Change(caller(), new_node(owner="picked")))) for _ in "ab"
        ]
        await until(waits(root, "%pg_advisory_xact_lock%"))
        waiting = [
            asyncio.ensure_future(memory.committer.submit(Change(caller(), new_node(owner="waiting")))) for _ in "ab"
        ]
        await asyncio.sleep(0)
        picked[0].cancel()
        waiting[0].cancel()
    outcomes = await settle(*picked, *waiting)
    assert [type(o) for o in outcomes] == [asyncio.CancelledError, Outcome] * 2
    assert root("SELECT owner, count(*) FROM memory_nodes GROUP BY 1 ORDER BY 1") == [("picked", 2), ("waiting", 1)]


async def test_closing_finishes_what_waits_and_takes_nothing_more(
    memory: Installation, root: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "BATCH", 8)
    async with committing(memory) as (committer, _):
        sent = [asyncio.ensure_future(committer.submit(Change(caller(), new_node()))) for _ in range(50)]
        await asyncio.sleep(0)
        await committer.close()
        assert all(task.done() and task.exception() is None for task in sent)
        with pytest.raises(Overloaded):
            await committer.submit(Change(caller(), new_node()))
    assert counts(root)[:2] == (50, 50)
    assert root(f"SELECT 1 FROM pg_stat_activity WHERE {COMMITTER} AND pid <> pg_backend_pid()") == []


async def test_too_many_waiting_writers_are_turned_away(
    memory: Installation, database: Database, root: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "WAITING", 5)
    with psycopg.connect(database("postgres"), autocommit=True) as other:
        other.execute(LOG_LOCK)
        first = asyncio.ensure_future(memory.committer.submit(Change(caller(), new_node())))
        await until(waits(root, "%pg_advisory_xact_lock%"))
        sent = [asyncio.ensure_future(memory.committer.submit(Change(caller(), new_node()))) for _ in range(8)]
        await asyncio.sleep(0)
    outcomes = await settle(first, *sent)
    assert [type(o) for o in outcomes] == [Outcome] * 6 + [Overloaded] * 3
    assert counts(root)[:2] == (6, 6)


async def test_two_first_starts_open_one_log(database: Database, tmp_path: Path) -> None:
    from memory_layer.stores.logs import open_log

    names = [f"host-{os.urandom(3).hex()}/audit/dev/s0/e1" for _ in range(4)]
    keys = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    opened = await asyncio.gather(
        *(open_log(database("memory_owner"), name, key) for name, key in zip(names, keys, strict=True))
    )
    assert [len(logs) for logs in opened] == [1] * 4
    (log,) = {logs[0] for logs in opened}
    assert (log.origin, log.key_id) in zip(names, keys, strict=True)


async def test_a_failed_statement_spoils_no_later_one(memory: Installation) -> None:
    """psycopg remembers statements behind a failed one in a pipeline as prepared; such a connection must not be used again."""
    good, bad, later = ("SELECT 1 AS n", {}), ("SELECT 1 / 0", {}), ("SELECT 2 AS n", {})
    for _ in range(6):
        with pytest.raises(Unwritable):
            await memory.postgres.fetch("ann", good, bad, later)
    for _ in range(6):
        assert await memory.postgres.fetch("ann", good, later) == [[{"n": 1}], [{"n": 2}]]


async def test_another_key_never_writes_to_a_log_that_has_one(database: Database, tmp_path: Path) -> None:
    """A new data folder on an existing database would seal with a key that no trust root of that log knows."""
    dsn = database("memory_app")
    async with running_memory(dsn, tmp_path / "first") as memory:
        await create(memory)
    for folder in ("second", "first-without-trust-root"):
        if folder.startswith("first"):
            (tmp_path / "first" / "trust-root.json").unlink()
            async with running_memory(dsn, tmp_path / "first") as memory:
                await create(memory)  # the same key: the trust root is made again
            assert verify(dsn, tmp_path / "first").exit_code == 10
        else:
            with pytest.raises(PolicyRefused, match="sealed by the key"):
                async with running_memory(dsn, tmp_path / folder):
                    pass
            assert not (tmp_path / folder / "trust-root.json").exists()


async def test_a_batch_is_bounded_by_bytes(memory: Installation, root: Any) -> None:
    outcomes = await asyncio.gather(
        *(memory.committer.submit(Change(caller(), new_node(content="x"), size=3 * 2**20)) for _ in range(9))
    )
    assert len(outcomes) == 9
    assert max(n for (n,) in root("SELECT last_seq - first_seq + 1 FROM audit_seals")) == 2
    with pytest.raises(Overloaded):
        await memory.committer.submit(Change(caller(), new_node(), size=300 * 2**20))
