"""What follows a commit (metrics, the ring for workers, answers, reads, notes) may fail: the write stands once and is answered as made."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from memory_layer import config
from memory_layer.api import handlers
from memory_layer.errors import SignerUnavailable
from memory_layer.ops import runs
from memory_layer.ops.first_start import ensure_keys, start_log
from memory_layer.ops.operate import Run
from memory_layer.service import jobs, retention
from memory_layer.service.actions.nodes import CreateNodes
from memory_layer.service.commit import Change, Committer, Outcome, batch, queue
from memory_layer.service.commit.transaction import SIGNER_TIMEOUT
from memory_layer.service.installation import Installation
from memory_layer.stores.log_guard import LogGuard
from memory_layer.stores.log_writer import BatchTx, LogWriter
from memory_layer.stores.pipeline import Pipeline
from memory_layer.telemetry import metrics
from tests.support.runs import installed, perform
from tests.support.service import caller, create, new_node, rows, running_memory, unit, verify

Database = Callable[[str], str]
Root = Callable[..., list[tuple[Any, ...]]]
MANY = 3


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened
    assert verify(database("postgres"), tmp_path).findings == ()


@pytest.fixture
def root(database: Database) -> Root:
    return lambda query, *params: rows(database("postgres"), query, params)


def fails(*_: object, **__: object) -> Any:
    raise RuntimeError("this step fails")


async def write(committer: Committer, tenant: str = "ann") -> list[Any]:
    """The outcomes of a bulk request and of single ones that share a batch or two; a hang fails."""
    changes = [Change(caller(tenant), new_node(embedding=unit(1, 0))) for _ in range(MANY)]
    changes.append(Change(caller(tenant), CreateNodes([new_node() for _ in range(MANY)])))
    submitted = [committer.submit(change) for change in changes]
    return await asyncio.wait_for(asyncio.gather(*submitted, return_exceptions=True), 20)


def assert_written_once(root: Root, outcomes: list[Any]) -> None:
    assert [type(outcome) for outcome in outcomes] == [Outcome] * (MANY + 1), outcomes
    assert root("SELECT count(*) FROM memory_nodes") == [(2 * MANY,)]
    assert (
        root("SELECT count(*), max(seq) FROM audit_events WHERE event_type = 'memory.node.created'")[0][0] == 2 * MANY
    )
    named = {outcome.receipt.seq for outcome in outcomes}
    assert named <= {seq for (seq,) in root("SELECT seq FROM audit_events")}


async def test_a_ring_that_fails(memory: Installation, root: Root) -> None:
    rung = 0

    def notify(_: object) -> None:
        nonlocal rung
        rung += 1
        raise RuntimeError("nobody hears it")

    writer = LogWriter(memory.postgres.dsn, SIGNER_TIMEOUT, LogGuard(memory.trust_root))
    committer = Committer(writer, memory.keys, notify)
    try:
        outcomes = await write(committer)
    finally:
        await committer.close()
    assert rung
    assert_written_once(root, outcomes)


@pytest.mark.parametrize("metric", ["commit_batch_size", "commit_seconds"])
async def test_a_metric_that_fails(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(getattr(metrics, metric), "observe", fails)
        outcomes = await write(memory.committer)
    assert_written_once(root, outcomes)


async def test_answers_that_cannot_be_given_a_few_at_a_time(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(queue, "_deliver_some", fails)
        outcomes = await write(memory.committer)
    assert_written_once(root, outcomes)


async def test_one_answer_that_cannot_be_given_keeps_nobody_else_waiting(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver, failed = batch.Item.deliver, 0

    def once(item: batch.Item) -> None:
        nonlocal failed
        deliver(item)
        if not failed:
            failed += 1
            raise RuntimeError("after the first answer")

    with monkeypatch.context() as broken:
        broken.setattr(batch.Item, "deliver", once)
        outcomes = await write(memory.committer)
    assert failed
    assert_written_once(root, outcomes)


@pytest.mark.parametrize(
    "error", [RuntimeError("after COMMIT"), KeyError("after COMMIT"), UnicodeError("after COMMIT")]
)
async def test_a_fault_of_the_program_once_postgres_has_committed(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Say, in reading what Postgres answered. The log says that the batch stands, and so it is not run again."""
    whole, failed = BatchTx.commit, 0

    async def committed(self: BatchTx, *args: Any, **named: Any) -> None:
        nonlocal failed
        await whole(self, *args, **named)
        failed += 1
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(BatchTx, "commit", committed)
        outcomes = await write(memory.committer)
    assert failed
    assert_written_once(root, outcomes)


async def test_a_fault_before_anything_was_sent_is_no_commit(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, failed = Pipeline.run, 0

    async def cut(self: Pipeline, calls: Any) -> Any:
        nonlocal failed
        calls = list(calls)
        if calls[-1][0].name.endswith(b"_commit") and not failed:
            failed += 1
            raise RuntimeError("before anything was sent")
        return await run(self, calls)

    with monkeypatch.context() as broken:
        broken.setattr(Pipeline, "run", cut)
        outcomes = await write(memory.committer)
    assert failed == 1
    assert_written_once(root, outcomes)


async def test_keys_that_cannot_be_opened_again_are_the_answer(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is sealed by another key, and looking for it fails: nothing was written, and the answer says so."""
    keys = memory.keys
    with monkeypatch.context() as broken:
        broken.setattr(type(keys), "find", lambda *_: None)
        broken.setattr(type(keys), "reload", fails)
        outcomes = await write(memory.committer)
    assert [type(outcome) for outcome in outcomes] == [SignerUnavailable] * (MANY + 1)
    assert root("SELECT count(*) FROM memory_nodes") == [(0,)]
    await create(memory)


async def test_a_job_that_cannot_be_read_after_it_was_cancelled(
    memory: Installation, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(memory, embedding=unit(1, 0))
    ((job,),) = root("SELECT id FROM memory_vectors")
    find, looks = jobs._find, 0

    async def once(*args: Any) -> dict[str, Any]:
        nonlocal looks
        looks += 1
        return await find(*args) if looks == 1 else fails()

    with monkeypatch.context() as broken:
        broken.setattr(jobs, "_find", once)
        shape, outcome = await jobs.cancel_or_retry(memory.postgres, memory.committer, caller(), job, "cancel")
    now = await jobs.get(memory.postgres, caller(), job)
    assert outcome.receipt is not None
    changing = ("createdAt", "updatedAt", "error")
    assert {k: v for k, v in shape.items() if k not in changing} == {k: v for k, v in now.items() if k not in changing}
    assert shape["error"].startswith("Cancelled by tester")
    assert now["error"].startswith("Cancelled by tester")


# --- operators' runs


@pytest.fixture
def place(database: Database, tmp_path: Path) -> Installation:
    settings = config.load({}, embeddings_provider="none")
    ensure_keys(tmp_path)
    asyncio.run(start_log(settings, tmp_path, database("memory_app"), database("memory_owner")))
    return installed(settings, tmp_path, database("memory_app"))


def done(run: Run) -> None:
    run.fact("done", True)


def entries_of(root: Root, run: uuid.UUID) -> int:
    return int(
        root(
            "SELECT count(*) FROM audit_events WHERE event_type LIKE 'ops.test-%%' AND convert_from(entry, 'UTF8') LIKE %s",
            f"%{run}%",
        )[0][0]
    )


def test_a_run_whose_outcome_cannot_be_shown_is_still_its_outcome(place: Installation, root: Root) -> None:
    deaf = installed(place.settings, place.folder, place.dsn, fails)
    report = perform(deaf, "test-deaf", {}, done)
    assert (report.exit, report.facts) == (0, {"done": True})
    assert root("SELECT exit_code, audit_id IS NULL FROM ops_runs WHERE id = %s", report.run_id) == [(0, False)]


def test_a_run_whose_entry_is_in_the_log_and_is_not_noted_gets_no_second_one(
    place: Installation, root: Root, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even after the time for which the answers of repeated requests are kept."""
    with monkeypatch.context() as broken:
        broken.setitem(runs._SQL, "audited_run", "SELECT 1/0")
        report = perform(place, "test-unnoted", {}, done)
    assert (report.exit, report.facts) == (0, {"done": True})
    assert root("SELECT audit_id IS NULL FROM ops_runs WHERE id = %s", report.run_id) == [(True,)]
    assert entries_of(root, report.run_id) == 1
    with psycopg.connect(database("postgres"), autocommit=True) as owner:
        owner.execute("UPDATE idempotency_keys SET created_at = created_at - interval '30 hours'")

    async def later() -> None:
        async with running_memory(database("memory_app"), tmp_path) as memory:
            await retention.forget_requests(memory)
            await runs.write_owed(memory.postgres, memory.committer)
            assert root("SELECT audit_id IS NULL FROM ops_runs WHERE id = %s", report.run_id) == [(False,)]
            await retention.forget_requests(memory)

    asyncio.run(later())
    assert entries_of(root, report.run_id) == 1
    assert root("SELECT count(*) FROM idempotency_keys WHERE created_at < now() - interval '24 hours'") == [(0,)]
    assert verify(database("postgres"), tmp_path).findings == ()


def test_whatever_keeps_a_run_from_being_written_down_its_outcome_is_reported(
    place: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "write_owed", fails)
    report = perform(place, "test-unsettled", {}, done)
    assert (report.exit, report.facts) == (3, {"done": True})


class _Fails:
    async def until_indexed(self, *_: object) -> bool:
        raise RuntimeError("the index cannot be asked")


async def test_a_write_whose_wait_for_the_index_fails_is_answered_as_accepted(memory: Installation) -> None:
    """The write is committed by then: 202, not an error that has it written again."""
    about = SimpleNamespace(
        installation=memory.with_parts(waits=_Fails()),
        query=SimpleNamespace(wait="indexed"),
        caller=caller(),
    )
    answer = {"embeddingJobId": str(uuid.uuid4()), "version": 1}
    assert await handlers._searchable(about, [answer]) is False  # type: ignore[arg-type]
